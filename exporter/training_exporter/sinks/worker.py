# SPDX-License-Identifier: Apache-2.0
"""The thread of one sink, and what waits for it."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from threading import Thread, current_thread
from typing import Final

from training_exporter.layers.histograms import RawHistograms
from training_exporter.monitor import TrainingMonitor
from training_exporter.signals import StepSignals
from training_exporter.sinks.points import points_of
from training_exporter.sinks.sink import RunInfo, Sink, SinkClosed, SinkTrouble
from training_exporter.snapshot import Anomaly
from training_exporter.summary.making import RunSummary

logger = logging.getLogger("training_exporter")

BATCH_SECONDS: Final = 1.0
"""Steps are handed over so often."""
MOST_WAITING: Final = 8192
"""Steps that may wait for a sink that is slow; some 4 MB."""
MOST_HISTOGRAMS: Final = 2
"""Looks at the layers that may wait among them; some 4 MB each."""
MOST_URGENT: Final = 256
"""Anomalies and ends that may wait beyond those."""


class Worker:
    """Hands over to one sink what happens in a run, on a thread of its own.

    No lock is taken and nothing is waited for but in `run`: a garbage collection may say the end.

    Args:
        sink: who is told.
        run: returns which run it is.
        monitor: of the run; its averages are told too.
        on_error: called whenever the sink raised.

    Attributes:
        dropped: steps and more that found no room.
        retired: whether the sink raised what it should not, and is switched off.
    """

    def __init__(
        self,
        sink: Sink,
        run: Callable[[], RunInfo],
        monitor: TrainingMonitor,
        on_error: Callable[[], object],
    ) -> None:
        self.sink = sink
        self.dropped = 0
        self.retired = False
        self._run_info = run
        self._monitor = monitor
        self._on_error = on_error
        self._begun = False
        self._handing_over = False
        self._trouble_logged = False
        self._dropped_logged = False
        self._waiting: deque[StepSignals | RawHistograms | Anomaly | RunSummary] = deque()
        self._histograms_put = self._histograms_taken = 0  # each is counted by one thread alone
        # Not an Event, whose lock may be held where a garbage collection says the end.
        self._orders: SimpleQueue[bool] = SimpleQueue()
        self._thread: Thread | None = None

    def start(self) -> None:
        """Begin to hand over, if that is not done yet.

        Raises:
            RuntimeError: the system grants no more threads.
        """
        if self._thread is None or not self._thread.is_alive():
            name = f"training-exporter-{self.sink.name}"
            thread = Thread(target=self.run, name=name, daemon=True)
            thread.start()
            self._thread = thread

    # Called by who trains

    def step(self, signals: StepSignals) -> None:
        """Have a step handed over some time soon; next to no time."""
        if self.retired:
            return
        if len(self._waiting) < MOST_WAITING:
            self._waiting.append(signals)
        else:
            self.dropped += 1

    def histograms(self, found: RawHistograms) -> None:
        """Have a look at the layers handed over some time soon, if the sink wants any."""
        if self.retired or not self.sink.histogram_steps:
            return
        if self._histograms_put - self._histograms_taken < MOST_HISTOGRAMS:
            self._histograms_put += 1
            self._waiting.append(found)
        else:
            self.dropped += 1

    def urgent(self, item: Anomaly | RunSummary) -> None:
        """Have something handed over at once, after the steps before it."""
        if self.retired:
            return
        if len(self._waiting) < MOST_WAITING + MOST_URGENT:
            self._waiting.append(item)
            self._orders.put(False)
        else:
            self.dropped += 1

    def leave(self) -> None:
        """Nothing will come any more: the thread ends once all is handed over."""
        self._orders.put(True)

    @property
    def busy(self) -> bool:
        """Whether something waits or is being handed over, by a thread that still can."""
        thread = self._thread
        if self.retired or thread is None or thread is current_thread() or not thread.is_alive():
            return False
        return self._handing_over or bool(self._waiting)

    # On the thread

    def run(self) -> None:
        """Hand over until told to leave, or the sink is retired."""
        leaving = False
        while not (leaving or self.retired):
            with suppress(Empty):
                leaving = self._orders.get(timeout=BATCH_SECONDS)
            self._handing_over = True  # before anything is taken out, or who looks sees a rest
            self._hand_over_all()
            self._handing_over = False

    def _hand_over_all(self) -> None:
        waiting, steps = self._waiting, []
        for _ in range(len(waiting)):
            item = waiting.popleft()
            if isinstance(item, StepSignals):
                steps.append(item)
                continue
            self._hand_over_steps(steps)
            self._histograms_taken += isinstance(item, RawHistograms)
            self._tell(partial(self._hand_over, item))
            steps = []
        self._hand_over_steps(steps)
        if self.dropped and not self._dropped_logged:
            self._dropped_logged = True
            logger.warning(
                "the sink %s is slower than the training: steps are dropped, and counted in "
                "training_exporter_sink_dropped_total",
                self.sink.name,
            )

    def _hand_over_steps(self, steps: list[StepSignals]) -> None:
        if steps:
            self._tell(self._begin)
            points = points_of(steps, self._monitor.snapshot)
            self._tell(lambda: self.sink.steps(points))

    def _hand_over(self, item: RawHistograms | Anomaly | RunSummary) -> None:
        if isinstance(item, RunSummary):
            self._begun = False
            self.sink.finish(item)
            return
        self._begin()
        if isinstance(item, Anomaly):
            self.sink.anomaly(item)
        else:
            self.sink.histograms(item.read())

    def _begin(self) -> None:
        if not self._begun:
            self._begun = True
            self.sink.start(self._run_info())

    def _tell(self, tell: Callable[[], None]) -> None:
        if self.retired:
            return
        try:
            tell()
        except Exception as error:  # nobody is above in this thread, and users' code is in it
            self._on_error()
            over = not isinstance(error, SinkTrouble)
            self._log(error, over=over)
            self.retired = over  # last, as nobody waits for a sink that is

    def _log(self, error: Exception, *, over: bool) -> None:
        """The first trouble, and the end."""
        if over:
            self._waiting.clear()
            expected = isinstance(error, SinkClosed)
            logger.error(
                "the sink %s is switched off, as it raised %s: %s; the training is not affected",
                self.sink.name,
                type(error).__name__,
                error,
                exc_info=None if expected else error,
            )
        elif not self._trouble_logged:
            self._trouble_logged = True
            logger.warning(
                "the sink %s: %s; more such trouble is only counted, in "
                "training_exporter_errors_total",
                self.sink.name,
                error,
            )
