# SPDX-License-Identifier: Apache-2.0
"""The strip on top: how the run is, in eight numbers."""

from __future__ import annotations

from typing import Final

from training_dashboards import palette
from training_dashboards.charts import number
from training_dashboards.frame import SECONDS, SHORT, TOKENS_PER_SECOND, About, Row, steps
from training_dashboards.mappings import STATES
from training_dashboards.queries import RANKS as S
from training_dashboards.queries import by, last_state
from training_exporter import catalog

_RUN = "{{run}}"
_WIDTH, _HEIGHT = 3, 4
_NO_RUN = "No run in this time"

STATE = number(
    About(
        1,
        "State",
        "What the run does, or how it ended; vanished is a run at work that cannot be reached.",
        [catalog.RUN_STATE],
        _NO_RUN,
        _WIDTH,
        _HEIGHT,
    ),
    (by("run", "max", last_state(S)), _RUN),
    unit=SHORT,
    mappings=STATES,
)

STEP = number(
    About(
        2,
        "Step and time left",
        "The last finished optimiser step, and the time to the planned last one.",
        [catalog.STEP, catalog.ETA],
        _NO_RUN,
        _WIDTH,
        _HEIGHT,
    ),
    (by("run", "max", S.latest(catalog.STEP)), "{{run}} step"),
    (by("run", "max", S.latest(catalog.ETA)), "{{run}} left"),
    units=["locale", SECONDS],
    names=True,
)

LOSS = number(
    About(
        3,
        "Loss",
        "The loss of the last step, its mean over the ranks; NaN when it is NaN on any of them.",
        [catalog.TRAINING_LOSS],
        "No loss in this time",
        _WIDTH,
        _HEIGHT,
    ),
    (by("run", "avg", S.latest(catalog.TRAINING_LOSS)), _RUN),
)

GRADIENT_NORM = number(
    About(
        4,
        "Gradient norm",
        "The norm of all gradients before clipping in the last step; NaN when it is on any rank.",
        [catalog.GRADIENT_NORM],
        "No gradient norm in this time",
        _WIDTH,
        _HEIGHT,
    ),
    (by("run", "avg", S.latest(catalog.GRADIENT_NORM)), _RUN),
)

LEARNING_RATE = number(
    About(
        5,
        "Learning rate",
        "The highest learning rate of any parameter group in the last step.",
        [catalog.LEARNING_RATE],
        "No learning rate in this time",
        _WIDTH,
        _HEIGHT,
    ),
    (by("run", "max", S.latest(catalog.LEARNING_RATE)), _RUN),
)

TOKENS = number(
    About(
        6,
        "Tokens/s",
        "Recent tokens per second of all ranks together, waiting for data included.",
        [catalog.TOKENS_PER_SECOND],
        "No tokens counted in this time",
        _WIDTH,
        _HEIGHT,
    ),
    (by("run", "sum", S.latest(catalog.TOKENS_PER_SECOND)), _RUN),
    unit=TOKENS_PER_SECOND,
)

ANOMALIES = number(
    About(
        7,
        "Anomalies",
        "Anomalies that began in the time shown; one that goes on over many steps counts once.",
        [catalog.ANOMALIES],
        _NO_RUN,
        _WIDTH,
        _HEIGHT,
    ),
    (f"round({by('run', 'sum', S.total(catalog.ANOMALIES))})", _RUN),
    unit=SHORT,
    thresholds=steps((1, palette.BAD)),
)

AGE = number(
    About(
        8,
        "Last step age",
        "How long ago the last step of any rank ended.",
        [catalog.LAST_STEP_TIMESTAMP],
        "No step in this time",
        _WIDTH,
        _HEIGHT,
    ),
    (f"time() - {by('run', 'max', S.seen(catalog.LAST_STEP_TIMESTAMP))}", _RUN),
    unit=SECONDS,
)

STRIP: Final = Row(
    0,
    "",
    [STATE, STEP, LOSS, GRADIENT_NORM, LEARNING_RATE, TOKENS, ANOMALIES, AGE],
    closed=False,
)
