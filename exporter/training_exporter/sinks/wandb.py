# SPDX-License-Identifier: Apache-2.0
"""W&B: the same numbers as curves, anomalies as alerts, the summary at the end."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from inspect import signature
from queue import Empty, SimpleQueue
from ssl import SSLError
from threading import Thread
from typing import Any, Final
from urllib.request import (
    HTTPHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    UnknownHandler,
    getproxies,
)

from training_exporter.catalog import COMPLETED, CRASHED, STOPPED
from training_exporter.requirements import needed_by
from training_exporter.signals import Evaluation
from training_exporter.sinks.points import PREFIX, point_of
from training_exporter.sinks.sink import Point, RunInfo, Sink, SinkClosed, SinkTrouble
from training_exporter.snapshot import Anomaly
from training_exporter.status import ReportNote
from training_exporter.summary.making import RunSummary, plain

with needed_by("WandbSink", "wandb", install="wandb"):
    import wandb

logger = logging.getLogger("training_exporter")

ALERT_WAIT_SECONDS: Final = 300
PROBE_SECONDS: Final = 3.0
"""A server that has said nothing at all for so long is done without. It is less than the end of a
run waits for its sinks, so that even a short run is kept."""
INIT_SECONDS: Final = 30.0
"""One that answers and yet has not taken the run for so long is done without, too."""
MOST_PARKED: Final = 1000
"""Steps that may wait for a row of the user's before he is told."""
SUMMARY: Final = "monitor_summary"

_STEP: Final = f"{PREFIX}step"
_TIMESTAMP: Final = "_timestamp"
"""W&B's own time of a row; that of its logging unless it is given."""
_LONGEST_TITLE: Final = 63
_OFFLINE: Final = ("offline", "dryrun")
_MODES: Final = ("online", "offline", "disabled")
_OURS: Final = ("reinit", "settings")
"""Arguments of `wandb.init` that keep a run of ours apart from the user's."""
_EXIT_CODES: Final = {COMPLETED: 0, CRASHED: 1, STOPPED: 255}
"""255 is what W&B itself notes of a run that Ctrl-C has ended."""


class WandbSink(Sink):
    """Logs to the W&B run that is active when the training begins, or to one of its own.

    In your run our values ride on the rows that you log, each with the last that are known then: a
    row of ours would move your step counter. In a run of its own every step is a row. Such a run is
    online where a key is there and the server answers, and neither WANDB_MODE nor `mode` in `init`
    forbids it; else it is offline, for `wandb sync`. Nobody is ever asked for anything.

    Args:
        own_run: True makes a run of its own even if yours is active.
        project: project of a run of its own; None is W&B's own idea of it.
        name: name of the sink.
        init: further arguments of `wandb.init` for a run of its own; not `reinit` and `settings`,
            and of the modes only online, offline and disabled.

    Raises:
        TypeError: `project` is no text, or `init` no mapping.
        ValueError: `project` is no name of one, or `init` has what it may not.
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
        self._init = _checked({"project": project}, {} if init is None else init)
        self._run: Any = None  # as well where nothing is to be written
        self._is_own = False
        self._parked = 0
        self._parked_at: int | None = None

    def start(self, run: RunInfo) -> None:
        active = None if self._wants_own else wandb.run
        self._is_own = active is None
        self._run = self._new_run(run) if active is None else active
        self._parked, self._parked_at = 0, None if active is None else _step_of(active)
        if self._run is not None:
            self._run.define_metric(_STEP, hidden=True)
            self._run.define_metric(f"{PREFIX}*", step_metric=_STEP)

    def steps(self, points: Sequence[Point]) -> None:
        if self._is_own:
            for point in points:
                self._log(point)
            return
        latest: dict[str, float] = {}
        for point in points:
            latest.update(point.values)
        self._log(points[-1]._replace(values=latest))
        self._parked += len(points)
        if self._parked >= MOST_PARKED:
            self._look_for_rows()

    def evaluation(self, results: Evaluation) -> None:
        self._log(point_of(results))

    def anomaly(self, anomaly: Anomaly) -> None:
        self._alert(anomaly.kind, f"step {anomaly.step}: {anomaly.in_words}")

    def report(self, note: ReportNote) -> None:
        if note.alarming:
            self._alert("report on a NaN", "\n".join(filter(None, (note.summary, note.path))))

    def finish(self, summary: RunSummary) -> None:
        if self._run is None:  # nothing is written, or the end has been told already
            return
        run = self._usable_run()
        if self._parked > 1:
            self._look_for_rows()
        self._run = None
        run.summary.update({SUMMARY: plain(summary)})
        if self._is_own:
            run.finish(exit_code=_EXIT_CODES[summary.state])

    def _log(self, point: Point) -> None:
        run = self._usable_run()
        row = {_STEP: point.step, **{PREFIX + name: v for name, v in point.values.items()}}
        if not self._is_own:
            run.log(row, commit=False)  # the time is that of the user's row
        elif run is not None:
            run.log({**row, _TIMESTAMP: point.timestamp})

    def _alert(self, title: str, text: str) -> None:
        run = self._usable_run()
        if run is not None:
            run.alert(
                title=title[:_LONGEST_TITLE], text=text, level="WARN",
                wait_duration=ALERT_WAIT_SECONDS,
            )  # fmt: skip

    def _look_for_rows(self) -> None:
        """Say it, once, if the user's run has had no row so far that our values could ride on."""
        parked_at, self._parked_at = self._parked_at, None
        if parked_at is not None and _step_of(self._run) == parked_at:
            logger.warning(
                "your W&B run has had no row so far, and %s* gets a point only with each row that "
                "you log; WandbSink(own_run=True) has each step",
                PREFIX,
            )

    def _usable_run(self) -> Any:
        """The run, unless it was the user's and is over.

        Raises:
            SinkTrouble: it is over.
        """
        if not self._is_own and self._run is not wandb.run:
            raise SinkTrouble("the W&B run that was active has been finished")
        return self._run

    def _new_run(self, run: RunInfo) -> Any:
        """A run of its own, None if W&B is turned off: even its run that does nothing would become
        the active one."""
        settings = wandb.setup().settings
        mode = self._init.get("mode") or settings.mode
        if mode == "disabled":
            return None
        try:
            if mode not in _OFFLINE and _can_be_online(settings):
                return self._opened(run, mode)
        except wandb.errors.Error as error:
            logger.warning("W&B was not reached, so its run is offline: %s", error)
        return self._opened(run, "offline")

    def _opened(self, run: RunInfo, mode: str) -> Any:
        # It is not made the active run, and takes nothing that is printed.
        settings = wandb.Settings(console="off", silent=True)
        if mode not in _OFFLINE:
            settings.init_timeout = INIT_SECONDS
        defaults = {"name": run.run, "config": dict(run.info), "job_type": "monitor"}
        fixed = {"mode": mode, "reinit": "create_new", "settings": settings}
        try:
            return wandb.init(**{**defaults, **self._init, **fixed})
        except (wandb.errors.UsageError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise SinkClosed(f"wandb.init refuses what it is given: {reason}") from error


def _checked(given: dict[str, Any], init: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for `wandb.init`, as far as it can be seen that it takes them."""
    if not isinstance(init, Mapping):
        raise TypeError(f"init must be a mapping of arguments of wandb.init, got {init!r}")
    taken = [name for name in signature(wandb.init).parameters if name not in _OURS]
    for name in init:
        if name not in taken:
            raise ValueError(f"init takes {', '.join(taken)}; got {name!r}")
    arguments = {**given, **init}
    project, mode = arguments["project"], arguments.get("mode")
    if not (project is None or isinstance(project, str)):
        raise TypeError(f"project must be the name of one, got {project!r}")
    if mode is not None and mode not in _MODES:
        raise ValueError(f"mode in init must be one of {', '.join(_MODES)}; got {mode!r}")
    try:
        wandb.Settings(project=project)
    except wandb.errors.UsageError as error:
        raise ValueError(str(error)) from None
    return arguments


def _step_of(run: Any) -> int | None:
    """The step of a user's run, None where W&B does not tell it."""
    if run.settings.mode not in ("online", "offline"):
        return None
    try:
        step: int = run.step
    except (wandb.errors.Error, TimeoutError):
        return None
    return step


def _can_be_online(settings: Any) -> bool:
    """Whether W&B knows who it is; else `wandb.init` would ask, and wait for an answer.

    Raises:
        wandb.errors.Error: the server is not there, or the key cannot be one.
    """
    if wandb.run is not None and wandb.run.offline:
        return False
    _require_answer(settings)  # first, as login would wait for it for seconds
    if wandb.run is not None:
        return True
    try:
        return wandb.login(prompt=False, verify=False)
    except TypeError:  # an older release, whose login would ask
        return bool(wandb.api.api_key)


def _require_answer(settings: Any) -> None:
    """Make sure that the server is there before `wandb.init` is asked to find out, as that holds up
    the end of the process for as long as it waits, and then forgets the run.

    Raises:
        wandb.errors.CommError: it is not.
    """
    url: str = settings.base_url
    own = {scheme: getattr(settings, f"{scheme}_proxy", None) for scheme in ("http", "https")}
    proxies = {**getproxies(), **{scheme: proxy for scheme, proxy in own.items() if proxy}}
    answers: SimpleQueue[bool] = SimpleQueue()
    # A thread, since nothing bounds how long a name is looked up.
    Thread(
        target=lambda: answers.put(_answers(f"{url}/graphql", proxies)),
        name="training-exporter-wandb-probe", daemon=True,
    ).start()  # fmt: skip
    try:
        if answers.get(timeout=PROBE_SECONDS):
            return
        reason = f"{url} cannot be reached"
    except Empty:
        reason = f"{url} has not answered within {PROBE_SECONDS:g} s"
    raise wandb.errors.CommError(reason)


def _answers(url: str, proxies: dict[str, str]) -> bool:
    """Whether a server answers, whatever it says. In doubt it does, and W&B will see."""
    opener = OpenerDirector()  # a plain one: it neither follows a redirect nor raises for an error
    for handler in (ProxyHandler(proxies), HTTPHandler(), HTTPSHandler(), UnknownHandler()):
        opener.add_handler(handler)
    try:
        opener.open(url, timeout=PROBE_SECONDS).close()
    except OSError as error:
        reason = getattr(error, "reason", error)  # a text where urllib does not know such a proxy
        return isinstance(reason, SSLError) or not isinstance(reason, OSError)
    except (HTTPException, ValueError):
        pass
    return True
