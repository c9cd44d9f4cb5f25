# SPDX-License-Identifier: Apache-2.0
"""W&B: the same numbers as curves, anomalies as alerts, the summary at the end."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, Final

from training_exporter.catalog import CRASHED
from training_exporter.requirements import needed_by
from training_exporter.sinks.points import PREFIX
from training_exporter.sinks.sink import Point, RunInfo, Sink, SinkTrouble
from training_exporter.snapshot import Anomaly
from training_exporter.summary.making import RunSummary, plain

with needed_by("WandbSink", "wandb", install="wandb"):
    import wandb

logger = logging.getLogger("training_exporter")

ALERT_WAIT_SECONDS: Final = 300
INIT_SECONDS: Final = 30.0
"""A server that has not answered for so long is done without."""
SUMMARY: Final = "monitor_summary"

_STEP: Final = f"{PREFIX}step"
_LONGEST_TITLE: Final = 63


class WandbSink(Sink):
    """Logs to the W&B run that is active when the training begins, or to one of its own.

    In your run our values ride on the rows that you log, each with the last that are known then: a
    row of ours would move your step counter. In a run of its own every step is a row. Such a run is
    online where a key is there and the server answers, and WANDB_MODE does not forbid it; else it
    is offline, for `wandb sync`. Nobody is ever asked for anything.

    Args:
        own_run: True makes a run of its own even if yours is active.
        project: project of a run of its own; None is W&B's own idea of it.
        name: name of the sink.
        init: further arguments of `wandb.init` for a run of its own.
    """

    def __init__(
        self,
        *,
        own_run: bool = False,
        project: str | None = None,
        name: str = "wandb",
        init: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = name
        self._wants_own = own_run
        self._init = {"project": project, **(init or {})}
        self._run: Any = None
        self._is_own = False

    def start(self, run: RunInfo) -> None:
        active = None if self._wants_own else wandb.run
        self._is_own = active is None
        self._run = self._new_run(run) if active is None else active
        self._run.define_metric(_STEP, hidden=True)
        self._run.define_metric(f"{PREFIX}*", step_metric=_STEP)

    def steps(self, points: Sequence[Point]) -> None:
        run = self._usable_run()
        if self._is_own:
            for point in points:
                run.log(_row(point.step, point.values))
            return
        latest: dict[str, float] = {}
        for point in points:
            latest.update(point.values)
        run.log(_row(points[-1].step, latest), commit=False)

    def anomaly(self, anomaly: Anomaly) -> None:
        run = self._usable_run()
        run.alert(
            title=anomaly.kind[:_LONGEST_TITLE],
            text=f"step {anomaly.step}: {anomaly.in_words}",
            level="WARN",
            wait_duration=ALERT_WAIT_SECONDS,
        )

    def finish(self, summary: RunSummary) -> None:
        if self._run is None:  # it ended before it began, or has been told already
            return
        run, self._run = self._usable_run(), None
        run.summary.update({SUMMARY: plain(summary)})
        if self._is_own:
            run.finish(exit_code=1 if summary.state == CRASHED else 0)

    def _usable_run(self) -> Any:
        """The run, unless it was the user's and is over.

        Raises:
            SinkTrouble: it is over.
        """
        if not self._is_own and self._run is not wandb.run:
            raise SinkTrouble("the W&B run that was active has been finished")
        return self._run

    def _new_run(self, run: RunInfo) -> Any:
        if os.environ.get("WANDB_MODE", "online") != "online":
            return self._opened(run, None)
        if not _can_be_online():
            return self._opened(run, "offline")
        try:
            return self._opened(run, "online")
        except wandb.errors.Error as error:
            logger.warning("W&B was not reached, so its run is offline: %s", error)
            return self._opened(run, "offline")

    def _opened(self, run: RunInfo, mode: str | None) -> Any:
        # It is not made the active run, and takes nothing that is printed.
        settings = wandb.Settings(console="off", silent=True)
        if mode == "online":
            settings.init_timeout = INIT_SECONDS
        defaults = {"name": run.run, "config": dict(run.info), "job_type": "monitor"}
        fixed = {"mode": mode, "reinit": "create_new", "settings": settings}
        return wandb.init(**{**defaults, **self._init, **fixed})


def _can_be_online() -> bool:
    """Whether W&B knows who it is; else `wandb.init` would ask, and wait for an answer."""
    if wandb.run is not None:
        return not wandb.run.offline
    try:
        return wandb.login(prompt=False, verify=False)
    except TypeError:  # an older release, whose login would ask
        return bool(wandb.api.api_key)


def _row(step: int, values: Mapping[str, float]) -> dict[str, float]:
    return {_STEP: step, **{PREFIX + name: value for name, value in values.items()}}
