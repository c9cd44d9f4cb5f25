# SPDX-License-Identifier: Apache-2.0
"""All runs at a glance, those that have ended too, and whether the GPUs are at work."""

from __future__ import annotations

from typing import Any, Final

from training_dashboards import palette
from training_dashboards.bands import timeline
from training_dashboards.build import Dashboard
from training_dashboards.charts import SHARE_AXIS, Axis, Curve, curves, number
from training_dashboards.events import events
from training_dashboards.frame import SECONDS, SHARE, SHORT, TOKENS_PER_SECOND, About, Row, steps
from training_dashboards.mappings import STATES
from training_dashboards.queries import (
    LIVE_STATES,
    PROCESS,
    STATE_CODES,
    VANISHED,
    by,
    last_state,
    state_now,
)
from training_dashboards.queries import RUNS as S
from training_dashboards.tables import Column, table
from training_exporter import catalog

BUSY_FROM: Final = 0.1
"""Share of the time in which a kernel runs from which on a GPU is busy."""

_NO_RUN: Final = "No run in this time"
_NO_GPU: Final = "No GPU is read now"
_WIDTH, _HEIGHT = 4, 4

_AT_WORK = by("run", "max", S.of(catalog.RUN_STATE, f'state=~"{"|".join(LIVE_STATES)}"'))
AT_WORK = number(
    About(
        1,
        "Runs at work",
        "Runs of which a rank starts, trains, evaluates or saves now.",
        [catalog.RUN_STATE],
        "None is there now",
        _WIDTH,
        _HEIGHT,
    ),
    (f"sum({_AT_WORK})", "at work"),
    unit=SHORT,
    thresholds=steps((1, palette.AT_WORK)),
)

LOST = number(
    About(
        2,
        "Runs crashed or vanished",
        "Runs of the time shown that crashed, or that were at work when they were last seen.",
        [catalog.RUN_STATE],
        _NO_RUN,
        _WIDTH,
        _HEIGHT,
    ),
    (f"sum({by('run', 'max', last_state(S))} >= bool {STATE_CODES[VANISHED]})", "lost"),
    unit=SHORT,
    thresholds=steps((1, palette.BAD)),
)

TOKENS = number(
    About(
        3,
        "Tokens per second",
        "Tokens per second of all runs that are at work now. Empty unless one is.",
        [catalog.TOKENS_PER_SECOND, catalog.RUN_STATE],
        "No tokens are counted now",
        _WIDTH,
        _HEIGHT,
    ),
    (f"sum({S.at_work(catalog.TOKENS_PER_SECOND)})", "all runs"),
    unit=TOKENS_PER_SECOND,
)

ANOMALIES = number(
    About(
        4,
        "Anomalies",
        "Anomalies of all runs that began in the time shown.",
        [catalog.ANOMALIES],
        _NO_RUN,
        _WIDTH,
        _HEIGHT,
    ),
    (f"round(sum({S.total(catalog.ANOMALIES)}))", "all runs"),
    unit=SHORT,
    thresholds=steps((1, palette.BAD)),
)

_GPU_USE = by(
    "uuid",
    "max",
    f"{S.of(catalog.GPU_UTILIZATION)} "
    f"* on ({PROCESS}, gpu) group_left (uuid) {S.of(catalog.GPU_INFO)}",
)
BUSY = number(
    About(
        5,
        "GPUs busy",
        "GPUs on which a kernel ran for a tenth of the driver's last sample period or more; one "
        "that several processes report counts once.",
        [catalog.GPU_UTILIZATION, catalog.GPU_INFO],
        _NO_GPU,
        _WIDTH,
        _HEIGHT,
    ),
    (f"sum({_GPU_USE} >= bool {BUSY_FROM})", "busy"),
    unit=SHORT,
    thresholds=steps((1, palette.AT_WORK)),
)

IDLE = number(
    About(
        6,
        "GPUs idle",
        "GPUs that a run holds and on which a kernel ran for less than a tenth of the driver's "
        "last sample period.",
        [catalog.GPU_UTILIZATION, catalog.GPU_INFO],
        _NO_GPU,
        _WIDTH,
        _HEIGHT,
    ),
    (f"sum({_GPU_USE} < bool {BUSY_FROM})", "idle"),
    unit=SHORT,
    thresholds=steps((1, palette.WARNING)),
)

_WHAT_IT_IS: Final = (
    "topk by (run) (1, max by (run, model, framework, world_size) ("
    f"{S.seen(catalog.RUN_INFO)} * on ({PROCESS}) group_left () "
    f"{S.seen(catalog.LAST_PROGRESS_TIMESTAMP)}))"
)
_LAST_ANOMALY: Final = (
    "time() - topk by (run) (1, "
    + by(
        "run, kind",
        "max",
        S.seen(catalog.ANOMALY_LAST_TIMESTAMP, f'kind!="{catalog.RESTART}"'),
    )
    + ")"
)
_COLUMNS: Final = (
    Column("State", by("run", "max", last_state(S)), SHORT, mappings=STATES, width=110),
    Column("Step", by("run", "max", S.latest(catalog.STEP)), "locale", width=100),
    Column("Of", by("run", "max", S.latest(catalog.MAX_STEPS)), "locale", width=100),
    Column("Time left", by("run", "max", S.latest(catalog.ETA)), SECONDS, width=110),
    Column("Loss", by("run", "avg", S.latest(catalog.TRAINING_LOSS)), width=100),
    Column(
        "Tokens/s",
        by("run", "sum", S.latest(catalog.TOKENS_PER_SECOND)),
        TOKENS_PER_SECOND,
        width=120,
    ),
    Column("GPUs", by("run", "count", S.latest(catalog.GPU_UTILIZATION)), SHORT, width=70),
    Column("GPU use", by("run", "avg", S.latest(catalog.GPU_UTILIZATION)), SHARE, bar=True),
    Column(
        "Since then",
        _LAST_ANOMALY,
        SECONDS,
        labels=(("kind", "Last anomaly"),),
        width=110,
    ),
    Column(
        "Last step age",
        f"time() - {by('run', 'max', S.seen(catalog.LAST_STEP_TIMESTAMP))}",
        SECONDS,
        width=150,
    ),
    Column(
        "What it is",
        _WHAT_IT_IS,
        None,
        labels=(("model", "Model"), ("framework", "Framework"), ("world_size", "Ranks")),
    ),
)


def _to(title: str, uid: str) -> dict[str, Any]:
    """Return a link to a dashboard of the run in the cell, at the same time."""
    kept = "${datasource:queryparam}&${job:queryparam}&${__url_time_range}"
    return {"title": title, "url": f"/d/{uid}?var-run=${{__value.raw}}&{kept}"}


RUNS_TABLE = table(
    About(
        10,
        "Runs",
        "Each run of the time shown as it was last seen, those that ended hours ago too; click on "
        "its name to look into it.",
        [
            catalog.RUN_STATE,
            catalog.STEP,
            catalog.MAX_STEPS,
            catalog.ETA,
            catalog.TRAINING_LOSS,
            catalog.TOKENS_PER_SECOND,
            catalog.GPU_UTILIZATION,
            catalog.ANOMALY_LAST_TIMESTAMP,
            catalog.LAST_STEP_TIMESTAMP,
            catalog.RUN_INFO,
        ],
        _NO_RUN,
        width=24,
        height=12,
    ),
    keys=(("run", "Run"),),
    columns=_COLUMNS,
    links={
        "Run": [
            _to("Look into this run", "training-run"),
            _to("Its curves by step", "training-loss-by-step"),
            _to("Its GPUs", "training-hardware"),
        ]
    },
    sort=("Last step age", False),
)

STATES_OVER_TIME = timeline(
    About(
        11,
        "What runs did",
        "The state of each run over time, the worst of its ranks.",
        [catalog.RUN_STATE],
        _NO_RUN,
    ),
    by("run", "max", state_now(S)),
    "{{run}}",
    STATES,
)

TOKENS_OVER_TIME = curves(
    About(
        12,
        "Tokens per second by run",
        "Tokens per second of all ranks of each run.",
        [catalog.TOKENS_PER_SECOND],
        "No tokens counted in this time",
    ),
    Curve(by("run", "sum", S.of(catalog.TOKENS_PER_SECOND)), "{{run}}"),
    axis=Axis(TOKENS_PER_SECOND, least=0),
)

GPU_USE_OVER_TIME = curves(
    About(
        13,
        "GPU utilisation by run",
        "Share of the time in which a kernel ran, the mean of the GPUs of each run.",
        [catalog.GPU_UTILIZATION],
        "No GPU was read in this time",
    ),
    Curve(by("run", "avg", S.of(catalog.GPU_UTILIZATION)), "{{run}}"),
    axis=SHARE_AXIS,
)

LOSS_OVER_TIME = curves(
    About(
        14,
        "Loss by run",
        "The moving average of the loss of each run.",
        [catalog.LOSS_EMA],
        "No loss in this time",
    ),
    Curve(by("run", "avg", S.of(catalog.LOSS_EMA)), "{{run}}"),
)

FLEET: Final = Dashboard(
    uid="training-fleet",
    title="Training fleet",
    description="All training runs, those that have ended too, and whether GPUs are at work.",
    selection=S,
    rows=[
        Row(0, "", [AT_WORK, LOST, TOKENS, ANOMALIES, BUSY, IDLE, RUNS_TABLE], closed=False),
        Row(
            100,
            "Over time",
            [STATES_OVER_TIME, TOKENS_OVER_TIME, GPU_USE_OVER_TIME, LOSS_OVER_TIME],
            closed=False,
        ),
    ],
    annotations=events(S),
)
