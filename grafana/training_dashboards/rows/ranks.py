# SPDX-License-Identifier: Apache-2.0
"""Which rank: who is slow, and who holds up the others."""

from __future__ import annotations

from typing import Final

from training_dashboards import palette
from training_dashboards.bands import bars
from training_dashboards.charts import Axis, Curve, curves
from training_dashboards.frame import NUMBER, SECONDS, About, Row
from training_dashboards.queries import RANKS as S
from training_dashboards.queries import by
from training_exporter import catalog

_STEPS: Final = f"({S.rate(catalog.STEP_DURATION, part='_count')} > 0)"
"""A rank that stands still has no step time, and a NaN would make the others' mean one."""

_STEP_TIME: Final = f"{S.rate(catalog.STEP_DURATION, part='_sum')} / {_STEPS}"
_OWN_TIME: Final = f"({S.rate(catalog.FORWARD_SECONDS)} + {S.rate(catalog.DATA_WAIT)}) / {_STEPS}"
"""What a rank takes before it waits for the others, as the rules of the alert reckon it."""

_TO_MEDIAN: Final = 'run_rank:training_own_seconds:to_median5m{run=~"$run", rank=~"$rank"}'
"""Recorded by alertmanager/rules/recording.yml, which no catalogue knows."""


def _spread(query: str) -> list[Curve]:
    return [
        Curve(by("run", "avg", query), "{{run}} mean", palette.MIDDLE, 3),
        Curve(by("run", "min", query), "{{run}} fastest rank", palette.LEAST, 1),
        Curve(by("run", "max", query), "{{run}} slowest rank", palette.MOST, 1),
    ]


STEP_SPREAD = curves(
    About(
        601,
        "Step time over the ranks",
        "Mean step time of the fastest rank, the slowest and all; in data-parallel training they "
        "wait for each other, so a spread here means that they do not.",
        [catalog.STEP_DURATION],
        "No step in this time",
    ),
    *_spread(_STEP_TIME),
    axis=Axis(SECONDS, soft_least=0),
)

OWN_SPREAD = curves(
    About(
        602,
        "Own time over the ranks",
        "What the fastest rank, the slowest and all take in a step before they wait for each "
        "other: waiting for their data, and the forward pass.",
        [catalog.FORWARD_SECONDS, catalog.DATA_WAIT, catalog.STEP_DURATION],
        "Forward passes were not timed in this time",
    ),
    *_spread(_OWN_TIME),
    axis=Axis(SECONDS, soft_least=0),
)

SLOWEST = bars(
    About(
        603,
        "Slowest ranks",
        "The five ranks with the longest own time at the end of the time shown, or the longest "
        "steps where forward passes are not timed. Empty unless steps end then.",
        [catalog.FORWARD_SECONDS, catalog.DATA_WAIT, catalog.STEP_DURATION],
        "No step at the end of this time",
        width=6,
    ),
    f"topk(5, {by('run, rank', 'max', f'{_OWN_TIME} or {_STEP_TIME}')})",
    "{{run}} rank {{rank}}",
    SECONDS,
    palette.MOST,
)

STRAGGLERS = bars(
    About(
        605,
        "Stragglers",
        "How many times the own time of the rank in the middle the five slowest ranks take, over "
        "five minutes; the alert TrainingStraggler goes by it. Empty unless several ranks time "
        "their forward passes.",
        [
            catalog.FORWARD_SECONDS,
            catalog.DATA_WAIT,
            catalog.STEP_DURATION,
            catalog.FORWARD_PASSES,
        ],
        "Unknown: one rank, no timed forward passes, or no recording rules",
        width=6,
    ),
    f"topk(5, {_TO_MEDIAN})",
    "{{run}} rank {{rank}}",
    NUMBER,
    palette.MOST,
)

FEWEST_PASSES = bars(
    About(
        606,
        "Fewest forward passes",
        "The five ranks that began and ended fewest forward passes: when all wait in a "
        "collective, the one that holds them up is behind.",
        [catalog.FORWARD_PASSES],
        "Forward passes were not counted in this time",
        width=6,
    ),
    f"bottomk(5, {by('run, rank', 'sum', S.recent(catalog.FORWARD_PASSES))})",
    "{{run}} rank {{rank}}",
    "locale",
    palette.WAITING,
)

OLDEST = bars(
    About(
        604,
        "Ranks without progress for longest",
        "The five ranks at work whose last step, evaluation or checkpoint is oldest: when all wait "
        "in a collective, look here. Empty unless a rank is at work.",
        [catalog.LAST_PROGRESS_TIMESTAMP, catalog.RUN_STATE],
        "No rank at work at the end of this time",
        width=6,
    ),
    f"topk(5, time() - {by('run, rank', 'max', S.at_work(catalog.LAST_PROGRESS_TIMESTAMP))})",
    "{{run}} rank {{rank}}",
    SECONDS,
    palette.WAITING,
)

RANKS: Final = Row(
    600, "Ranks", [STEP_SPREAD, OWN_SPREAD, SLOWEST, STRAGGLERS, OLDEST, FEWEST_PASSES]
)
