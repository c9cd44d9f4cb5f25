# SPDX-License-Identifier: Apache-2.0
"""Is it about to break: gradients, anomalies, mixed precision."""

from __future__ import annotations

from typing import Final

from training_dashboards import palette
from training_dashboards.bands import timeline
from training_dashboards.charts import SHARE_AXIS, Axis, Curve, curves
from training_dashboards.frame import SHORT, About, Row
from training_dashboards.mappings import words
from training_dashboards.queries import PROCESS, by
from training_dashboards.queries import RANKS as S
from training_exporter import catalog

GRADIENT_NORM = curves(
    About(
        201,
        "Gradient norm over time",
        "The norm of all gradients before clipping, thin, its moving average, thick, and the norm "
        "above which they are clipped; on a logarithmic scale.",
        [catalog.GRADIENT_NORM, catalog.GRAD_NORM_EMA, catalog.GRAD_CLIP_THRESHOLD],
        "No gradient norm in this time",
        height=9,
    ),
    Curve(
        by("run", "avg", S.of(catalog.GRADIENT_NORM)),
        "{{run}} norm",
        palette.GRADIENT_RAW,
        width=1,
    ),
    Curve(
        by("run", "avg", S.of(catalog.GRAD_NORM_EMA)),
        "{{run}} average",
        palette.GRADIENT,
        width=3,
    ),
    Curve(
        by("run", "min", S.of(catalog.GRAD_CLIP_THRESHOLD)),
        "{{run}} clipped above",
        palette.LIMIT,
        width=1,
        dashed=True,
    ),
    axis=Axis(log=10),
)

_BEGAN = f"{S.increase(catalog.ANOMALIES)} > 0"
_GOES_ON = f"{S.of(catalog.ANOMALY_ACTIVE)} == 1"
ANOMALIES = timeline(
    About(
        202,
        "Anomalies by kind",
        "When which anomaly began or went on, on any rank; a kind without any has no row.",
        [catalog.ANOMALIES, catalog.ANOMALY_ACTIVE],
        "No anomaly in this time",
        height=9,
    ),
    by("run, kind", "group", f"{_BEGAN} or {_GOES_ON}"),
    "{{run}} {{kind}}",
    words(one="anomaly"),
)

_SPIKE = f'kind="{catalog.LOSS_SPIKE}"'
LOSS_SPIKES = curves(
    About(
        203,
        "Loss spikes",
        "The loss at each spike, as a point, over the moving average that it leapt from.",
        [catalog.ANOMALY_LAST_VALUE, catalog.ANOMALIES, catalog.LOSS_EMA],
        "No loss in this time",
        width=8,
    ),
    Curve(
        by(
            "run",
            "max",
            f"{S.of(catalog.ANOMALY_LAST_VALUE, _SPIKE)} "
            f"and on ({PROCESS}) {S.increase(catalog.ANOMALIES, _SPIKE)} > 0",
        ),
        "{{run}} spike",
        palette.BAD,
        style="points",
    ),
    Curve(
        by("run", "avg", S.of(catalog.LOSS_EMA)),
        "{{run}} average",
        palette.TRAIN_LOSS,
    ),
)

CLIP_RATIO = curves(
    About(
        204,
        "Clipped steps",
        "Share of recent steps whose gradients were clipped; above one half, the learning rate is "
        "too high or the threshold too low.",
        [catalog.GRAD_CLIP_RATIO],
        "Gradients are not clipped",
        width=4,
    ),
    Curve(by("run", "max", S.of(catalog.GRAD_CLIP_RATIO)), "{{run}}", palette.GRADIENT, fill=10),
    axis=SHARE_AXIS,
)

LOSS_SCALE = curves(
    About(
        205,
        "Loss scale",
        "The scale of the mixed-precision gradient scaler; halving again and again is overflow.",
        [catalog.LOSS_SCALE],
        "No loss scale: this run does not train in fp16",
        width=6,
    ),
    Curve(by("run", "min", S.of(catalog.LOSS_SCALE)), "{{run}}", palette.GRADIENT),
    axis=Axis(SHORT, log=2),
)

NON_FINITE = curves(
    About(
        206,
        "Steps that were not finite",
        "Steps with a NaN or infinite loss or gradient norm, on the rank that had most, and steps "
        "that the optimiser left out.",
        [catalog.NON_FINITE_STEPS, catalog.SKIPPED_STEPS],
        "No step in this time",
        width=6,
    ),
    Curve(
        by("run, signal", "max", S.increase(catalog.NON_FINITE_STEPS)),
        "{{run}} {{signal}}",
        palette.BAD,
        style="bars",
        fill=60,
    ),
    Curve(
        by("run", "max", S.increase(catalog.SKIPPED_STEPS)),
        "{{run}} left out",
        palette.WARNING,
        style="bars",
        fill=60,
    ),
    axis=Axis(SHORT, least=0),
)

STABILITY: Final = Row(
    200,
    "Stability",
    [GRADIENT_NORM, ANOMALIES, LOSS_SPIKES, CLIP_RATIO, LOSS_SCALE, NON_FINITE],
    closed=False,
)
