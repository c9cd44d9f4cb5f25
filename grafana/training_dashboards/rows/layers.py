# SPDX-License-Identifier: Apache-2.0
"""Which layer: gradients and updates, layer by layer."""

from __future__ import annotations

from typing import Final

from training_dashboards import palette
from training_dashboards.bands import Cells, bars, cells
from training_dashboards.charts import number
from training_dashboards.frame import NUMBER, SHORT, About, Row
from training_dashboards.queries import RANKS as S
from training_dashboards.queries import by
from training_exporter import catalog

_NO_LAYERS: Final = "No layer was looked at in this time"


def _gradients(whole: str, shard: str) -> str:
    """Return the norm by run and layer: the ranks' own where layers are whole on each, put together
    from their parts where they are sharded."""
    sharded = f"sqrt({by('run, layer', 'sum', shard)})"
    return f"({by('run, layer', 'max', whole)} or {sharded})"


GRADIENTS = cells(
    About(
        501,
        "Gradient norm by layer",
        "The norm of each layer's gradient over time, the largest of the chosen runs; a column "
        "that darkens from one end is a gradient that vanishes, a blank one was not finite.",
        [catalog.LAYER_GRAD_NORM, catalog.LAYER_GRAD_SHARD_SQUARES],
        _NO_LAYERS,
        width=24,
        height=10,
    ),
    by(
        "layer",
        "max",
        _gradients(S.of(catalog.LAYER_GRAD_NORM), S.of(catalog.LAYER_GRAD_SHARD_SQUARES)),
    ),
    "{{layer}}",
    Cells(unit=NUMBER),
)

UPDATES = cells(
    About(
        502,
        "Update ratio by layer",
        "How much of its weights' norm a step changes in each layer; about 0.001 is healthy, a "
        "layer at 0 does not learn.",
        [catalog.LAYER_UPDATE_RATIO],
        _NO_LAYERS,
        width=24,
        height=10,
    ),
    by("layer", "max", S.of(catalog.LAYER_UPDATE_RATIO)),
    "{{layer}}",
    Cells(unit=NUMBER),
)

WORST = bars(
    About(
        503,
        "The five worst layers",
        "The layers with the largest gradient norm at the last pass.",
        [catalog.LAYER_GRAD_NORM, catalog.LAYER_GRAD_SHARD_SQUARES],
        _NO_LAYERS,
        width=10,
    ),
    "topk(5, "
    + _gradients(S.latest(catalog.LAYER_GRAD_NORM), S.latest(catalog.LAYER_GRAD_SHARD_SQUARES))
    + ")",
    "{{run}} {{layer}}",
    NUMBER,
    palette.GRADIENT,
)

BROKEN = bars(
    About(
        504,
        "Layers with NaN or Inf",
        "Passes in the time shown that found a NaN or an infinity in a gradient of the layer, for "
        "the five layers with most.",
        [catalog.LAYER_NON_FINITE],
        "No layer had any in this time",
        width=8,
    ),
    f"topk(5, round({by('run, layer', 'max', S.total(catalog.LAYER_NON_FINITE))}) > 0)",
    "{{run}} {{layer}}",
    SHORT,
    palette.BAD,
)

FIRST_BROKEN = number(
    About(
        505,
        "First layer that broke",
        "Where the backward pass met the first gradient that was not finite, and at which step.",
        [catalog.FIRST_NON_FINITE_LAYER_STEP],
        "Not seen: none broke, or between two passes",
        width=6,
    ),
    (
        by("run, layer", "max", S.latest(catalog.FIRST_NON_FINITE_LAYER_STEP)),
        "{{run}} {{layer}}, step",
    ),
    unit="locale",
    names=True,
)

LAYERS: Final = Row(500, "Layers", [GRADIENTS, UPDATES, WORST, BROKEN, FIRST_BROKEN])
