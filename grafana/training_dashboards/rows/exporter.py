# SPDX-License-Identifier: Apache-2.0
"""What watching costs, and what it missed."""

from __future__ import annotations

from typing import Final

from training_dashboards import palette
from training_dashboards.charts import Axis, Curve, curves, number
from training_dashboards.frame import SECONDS, SHORT, About, Row, steps
from training_dashboards.queries import RANKS as S
from training_dashboards.queries import by
from training_exporter import catalog

_ON_THE_STEP: Final = f'phase=~"{catalog.STEP_PHASE}|{catalog.OBSERVE_PHASE}"'

OVERHEAD = curves(
    About(
        701,
        "Overhead on each step",
        "Time that the exporter takes from the training thread in a step, the mean of the ranks "
        "and the most.",
        [catalog.OVERHEAD, catalog.STEPS],
        "No step in this time",
        width=8,
    ),
    *(
        Curve(
            by(
                "run",
                aggregation,
                f"{by('run, rank', 'sum', S.rate(catalog.OVERHEAD, _ON_THE_STEP))} / "
                f"{by('run, rank', 'sum', S.rate(catalog.STEPS))}",
            ),
            f"{{{{run}}}} {name}",
            colour,
        )
        for aggregation, name, colour in (
            ("avg", "mean", palette.MIDDLE),
            ("max", "most", palette.MOST),
        )
    ),
    axis=Axis(SECONDS, least=0),
)

SCRAPES = curves(
    About(
        702,
        "Scrape duration",
        "Time to draw the page that Prometheus fetches, on the rank where it takes longest, all "
        "collectors together.",
        [catalog.COLLECTOR_DURATION],
        "No scrape in this time",
        width=8,
    ),
    Curve(
        by("run", "max", f"sum without (collector) ({S.of(catalog.COLLECTOR_DURATION)})"),
        "{{run}}",
        palette.MIDDLE,
    ),
    axis=Axis(SECONDS, least=0),
)

_LOST: Final = (
    (catalog.DROPPED_OBSERVATIONS, "steps unseen"),
    (catalog.DROPPED_SERIES, "values not shown"),
    (catalog.DROPPED_LAYER_PASSES, "layer passes left out"),
    (catalog.DROPPED_PHASES, "step times left out"),
)
DROPPED = curves(
    About(
        703,
        "Dropped",
        "What the exporter left out so as not to hold up the training.",
        [metric for metric, _ in _LOST],
        "No exporter in this time",
        width=8,
    ),
    *(
        Curve(
            by("run", "sum", S.increase(metric)),
            f"{{{{run}}}} {name}",
            colour,
            style="bars",
            fill=60,
        )
        for (metric, name), colour in zip(
            _LOST, (palette.BAD, palette.WARNING, palette.MIDDLE, palette.QUIET), strict=True
        )
    ),
    axis=Axis(SHORT, least=0),
)

ERRORS = curves(
    About(
        704,
        "Errors of the exporter",
        "Errors that were kept away from the training, by where they happened. "
        "Empty unless there were any.",
        [catalog.ERRORS],
        "None in this time",
        width=16,
    ),
    Curve(
        f"{by('run, where', 'sum', S.increase(catalog.ERRORS))} > 0",
        "{{run}} {{where}}",
        palette.BAD,
        style="bars",
        fill=60,
    ),
    axis=Axis(SHORT, least=0),
)

COLLECTORS = number(
    About(
        705,
        "Collectors that fail",
        "Parts of the page that could not be drawn at the last scrape.",
        [catalog.COLLECTOR_SUCCESS],
        "No exporter in this time",
        width=8,
    ),
    (by("run", "sum", f"1 - {S.latest(catalog.COLLECTOR_SUCCESS)}"), "{{run}}"),
    unit=SHORT,
    thresholds=steps((1, palette.BAD)),
)

EXPORTER: Final = Row(700, "Exporter", [OVERHEAD, SCRAPES, DROPPED, ERRORS, COLLECTORS])
