# SPDX-License-Identifier: Apache-2.0
"""All sinks of a run: who feeds them, and how long their end is waited for."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from time import monotonic, sleep
from typing import Final
from weakref import WeakSet

from training_exporter.catalog import SINK_ERROR
from training_exporter.layers.histograms import RawHistograms
from training_exporter.monitor import TrainingMonitor
from training_exporter.signals import Evaluation, StepSignals
from training_exporter.sinks.sink import RunInfo, Sink
from training_exporter.sinks.worker import Worker
from training_exporter.snapshot import Anomaly
from training_exporter.status import ExporterHealth, ReportNote, StatusBoard
from training_exporter.summary.making import RunSummary

logger = logging.getLogger("training_exporter")

END_SECONDS: Final = 5.0
"""Sinks hold up the end of a run for no longer, and that of the process for as long once more."""
QUIET_SECONDS: Final = 1.0
"""Who waits for longer is told for what."""
POLL_SECONDS: Final = 0.01


class SinkFeed:
    """Tells the sinks of a run what happens in it, on rank 0; on others nothing.

    Args:
        sinks: who is told.
        board, monitor: of the run.
        health: where trouble is counted.

    Attributes:
        interrupted: whether the last wait for the end of the run was ended by Ctrl-C.

    Raises:
        ValueError: two sinks of one name, or a name that is no label.
        TypeError: something that is no sink.
    """

    def __init__(
        self,
        sinks: Iterable[Sink],
        board: StatusBoard,
        monitor: TrainingMonitor,
        health: ExporterHealth,
    ) -> None:
        sinks = list(sinks)
        _check(sinks)
        self._board = board
        on_error = partial(health.count_error, SINK_ERROR)
        run = partial(_run_info, board)
        self._all = tuple(Worker(sink, run, monitor, on_error) for sink in sinks)
        self._told: tuple[Worker, ...] = ()
        self._started = False
        self.interrupted = False
        health.sink_drops = self.dropped
        _feeds.add(self)

    def after_start(self, call: Callable[[], object]) -> None:
        """Have something called, on the thread of a sink, whenever that has begun."""
        for worker in self._all:
            worker.after_start = call

    def start(self) -> None:
        """Begin to tell, on rank 0 alone.

        Raises:
            RuntimeError: the system grants no more threads.
        """
        self._started = True
        if self._board.status.rank == 0:
            for worker in self._all:
                worker.start()
            self._told = self._all

    def step(self, signals: StepSignals) -> None:
        """A step was taken."""
        if not self._started:
            self.start()
        for worker in self._told:
            worker.step(signals)

    @property
    def histogram_interval(self) -> int:
        """The shortest that a sink asks for, in steps; 0 if none does or no sink is told."""
        wanted = [worker.sink.histogram_steps for worker in self._all]
        return min(filter(None, wanted), default=0) if self._board.status.rank == 0 else 0

    def histograms(self, found: RawHistograms) -> None:
        """Gradients and weights were looked at, which may be before their step is known."""
        if not self._started:
            self.start()
        for worker in self._told:
            worker.histograms(found)

    def evaluation(self, results: Evaluation) -> None:
        """An evaluation ended. One before the first step waits for it: alone it is no run."""
        if self._board.status.rank == 0:
            for worker in self._all:
                worker.step(results)

    def anomaly(self, anomaly: Anomaly) -> None:
        """An anomaly began."""
        for worker in self._told:
            worker.urgent(anomaly)

    def report(self, note: ReportNote) -> None:
        """A report on a NaN was made."""
        for worker in self._told:
            worker.urgent(note)

    def finish(self, summary: RunSummary) -> None:
        """The run has ended. Neither locks nor waits; `wait` does that."""
        self.interrupted = False
        if not self._started:
            with suppress(RuntimeError):  # a process that ends can start no thread any more
                self.start()
        for worker in self._told:
            worker.urgent(summary)

    def leave(self) -> None:
        """Nothing will come any more, unless it is started again. Neither locks nor waits."""
        for worker in self._told:
            worker.leave()
        self._told, self._started = (), False

    def wait(self, seconds: float = END_SECONDS) -> None:
        """Until all that was told has been taken in, or a bounded time has passed.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed.
        """
        try:
            _wait(self._busy, seconds)
        except KeyboardInterrupt:
            # Who has no patience now has none at the end of the process either. It is passed on,
            # since the script goes on after a run, and Ctrl-C may have been meant for that: the
            # next run of a search would begin all the same.
            self.interrupted = True
            raise

    @staticmethod
    def wait_for_all(seconds: float = END_SECONDS) -> None:
        """As `wait`, for all feeds of this process whose end was not interrupted."""
        feeds = [feed for feed in list(_feeds) if not feed.interrupted]
        _wait(lambda: [worker for feed in feeds for worker in feed._busy()], seconds)

    @staticmethod
    def give_up_all() -> None:
        """The process ends now: say what is lost with it."""
        for feed in list(_feeds):
            for worker in feed._busy():
                _say_what_is_lost(worker)

    def dropped(self) -> dict[str, int]:
        """How much found no room so far, by sink."""
        return {worker.sink.name: worker.dropped for worker in self._all}

    def forget(self) -> None:
        """In a forked child the threads are not, and the run is its parent's."""
        self._all = self._told = ()

    def _busy(self) -> list[Worker]:
        return [worker for worker in self._all if worker.busy]


def _wait(busy: Callable[[], list[Worker]], seconds: float) -> None:
    begun, quiet = monotonic(), True
    while (workers := busy()) and (waited := monotonic() - begun) < seconds:
        if quiet and waited >= QUIET_SECONDS:
            quiet = False
            for worker in workers:
                logger.info("waiting up to %g s for the sink %s", seconds, worker.sink.name)
        sleep(POLL_SECONDS)


def _say_what_is_lost(worker: Worker) -> None:
    calls = worker.undelivered
    steps = calls.pop("steps", 0)
    counts = ((calls.total(), "message"), (steps, "step"))
    lost = [f"{count:,} {what}{'s' * (count > 1)}" for count, what in counts if count]
    if lost:
        logger.warning(
            "gave up on the sink %s: %s not delivered", worker.sink.name, " and ".join(lost)
        )


def _run_info(board: StatusBoard) -> RunInfo:
    status = board.status
    return RunInfo(status.run, status.rank, status.info)


def listed(sinks: Iterable[Sink] | None) -> list[Sink]:
    """The sinks that somebody gives, of which None is none.

    Raises:
        TypeError: it is no list.
    """
    if sinks is None:
        return []
    if isinstance(sinks, str) or not isinstance(sinks, Iterable):
        raise TypeError(f"sinks must be a list such as [TensorBoardSink('runs')], got {sinks!r}")
    return list(sinks)


def _check(sinks: list[Sink]) -> None:
    for sink in sinks:
        if not isinstance(sink, Sink):
            raise TypeError(f"a sink must derive from training_exporter.sinks.Sink, got {sink!r}")
        if not isinstance(sink.name, str) or not re.fullmatch(r"[\w.-]{1,64}", sink.name):
            raise ValueError(
                "the name of a sink must be 1 to 64 letters, digits, dots, hyphens and "
                f"underscores, got {sink.name!r}"
            )
        if type(sink.histogram_steps) is not int or sink.histogram_steps < 0:
            raise ValueError(
                f"histogram_steps of the sink {sink.name} must be a whole number from 0 on, got "
                f"{sink.histogram_steps!r}"
            )
    names = [sink.name for sink in sinks]
    if len(set(names)) < len(names):
        raise ValueError(f"each sink needs a name of its own, got {', '.join(sorted(names))}")


_feeds: WeakSet[SinkFeed] = WeakSet()


def _forget_all() -> None:
    for feed in list(_feeds):
        feed.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
