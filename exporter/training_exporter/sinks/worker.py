# SPDX-License-Identifier: Apache-2.0
"""The thread of one sink, and what waits for it."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread, current_thread
from typing import Final

from training_exporter.layers.histograms import RawHistograms
from training_exporter.monitor import TrainingMonitor
from training_exporter.signals import Evaluation, StepSignals
from training_exporter.sinks.points import points_of
from training_exporter.sinks.sink import RunInfo, Sink, SinkClosed, SinkTrouble
from training_exporter.snapshot import Anomaly
from training_exporter.status import ReportNote
from training_exporter.summary.making import RunSummary

logger = logging.getLogger("training_exporter")

BATCH_SECONDS: Final = 1.0
"""Steps are handed over so often."""
MOST_WAITING: Final = 8192
"""Steps and evaluations that may wait for a sink that is slow; some 4 MB."""
MOST_HISTOGRAMS: Final = 2
"""Looks at the layers that may wait among them; some 4 MB each."""
MOST_URGENT: Final = 256
"""Anomalies, reports and ends that may wait beyond those."""

_Urgent = Anomaly | ReportNote | RunSummary
_Item = StepSignals | RawHistograms | Evaluation | _Urgent
_Batch = list[StepSignals] | RawHistograms | Evaluation | _Urgent

_METHODS: Final[Mapping[type[_Item], str]] = {
    StepSignals: "steps",
    RawHistograms: "histograms",
    Evaluation: "evaluation",
    Anomaly: "anomaly",
    ReportNote: "report",
    RunSummary: "finish",
}


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
        self._ended = False  # whether its end was the last that was told of a run
        self._handing_over = False
        self._trouble_logged = False
        self._dropped_logged = False
        self._waiting: deque[_Item] = deque()
        self._taken: list[_Item] = []  # out of the queue, and not handed over yet
        self._histograms_put = self._histograms_taken = 0  # each is counted by one thread alone
        # Not an Event, whose lock may be held where a garbage collection says the end.
        self._orders: SimpleQueue[bool] = SimpleQueue()
        self._thread: Thread | None = None
        self.after_start: Callable[[], object] = _nothing

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

    def step(self, item: StepSignals | Evaluation) -> None:
        """Have a step, or an evaluation among them, handed over some time soon; next to no time."""
        if self.retired:
            return
        if len(self._waiting) < MOST_WAITING:
            self._waiting.append(item)
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

    def urgent(self, item: _Urgent) -> None:
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

    @property
    def undelivered(self) -> Counter[str]:
        """How much waits or is being handed over, by the method that would be called for it; a
        method that the sink has not misses nothing."""
        pending = [*self._taken, *self._waiting.copy()]
        calls = Counter(_METHODS[type(item)] for item in pending)
        calls["start"] += bool(pending) and not (self._begun or self._ended)
        kind = type(self.sink)
        for name in list(calls):
            if getattr(kind, name) is getattr(Sink, name):
                del calls[name]
        return calls

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
        for batch in self._batches():
            self._tell(batch)
            if self.retired:
                return
            del self._taken[: len(batch) if isinstance(batch, list) else 1]
        if self.dropped and not self._dropped_logged:
            self._dropped_logged = True
            logger.warning(
                "the sink %s is slower than the training: steps are dropped, and counted in "
                "training_exporter_sink_dropped_total",
                self.sink.name,
            )

    def _batches(self) -> Iterator[_Batch]:
        """What waits at this moment: steps that follow each other together, all else by itself."""
        steps: list[StepSignals] = []
        for _ in range(len(self._waiting)):
            item = self._waiting.popleft()
            self._taken.append(item)
            if isinstance(item, StepSignals):
                steps.append(item)
                continue
            if steps:
                yield steps
                steps = []
            self._histograms_taken += isinstance(item, RawHistograms)
            yield item
        if steps:
            yield steps

    def _tell(self, batch: _Batch) -> None:
        try:
            self._hand_over(batch)
        except SinkTrouble as trouble:
            self._on_error()
            self._log_trouble(trouble, batch)
        # Nobody is above in this thread, and users' code is in it, which may even call sys.exit.
        except BaseException as error:
            self._on_error()
            self._switch_off(error)

    def _hand_over(self, batch: _Batch) -> None:
        if not (isinstance(batch, RunSummary) and self._ended):
            self._begin()
        if isinstance(batch, list):
            self.sink.steps(points_of(batch, self._monitor.snapshot))
        elif isinstance(batch, RunSummary):
            self._begun, self._ended = False, True
            self.sink.finish(batch)
        elif isinstance(batch, Anomaly):
            self.sink.anomaly(batch)
        elif isinstance(batch, ReportNote):
            self.sink.report(batch)
        elif isinstance(batch, Evaluation):
            self.sink.evaluation(batch)
        else:
            self.sink.histograms(batch.read())

    def _begin(self) -> None:
        if not self._begun:
            self._ended = False
            self.sink.start(self._run_info()._replace(step=self._first_step()))
            self.after_start()
            self._begun = True  # only now: it is asked again after trouble

    def _first_step(self) -> int | None:
        pending = (*self._taken, *self._waiting.copy())
        return next((item.step for item in pending if isinstance(item, StepSignals)), None)

    def _switch_off(self, error: BaseException) -> None:
        self._waiting.clear()
        self._taken.clear()
        expected = isinstance(error, SinkClosed)
        logger.error(
            "the sink %s is switched off, as it raised %s: %s; the training is not affected",
            self.sink.name,
            type(error).__name__,
            error,
            exc_info=None if expected else error,
        )
        self.retired = True  # last, as nobody waits for a sink that is

    def _log_trouble(self, trouble: SinkTrouble, batch: _Batch) -> None:
        """What is urgent each time, all else once."""
        name = self.sink.name
        if isinstance(batch, _Urgent):
            logger.warning("the sink %s: %s; %s was not delivered", name, trouble, _called(batch))
        elif not self._trouble_logged:
            self._trouble_logged = True
            logger.warning(
                "the sink %s: %s; more such trouble is only counted, in "
                "training_exporter_errors_total",
                name,
                trouble,
            )


def _called(item: _Urgent) -> str:
    if isinstance(item, Anomaly):
        return f"the anomaly {item.kind} at step {item.step}"
    return "the report on a NaN" if isinstance(item, ReportNote) else "the end of the run"


def _nothing() -> None:
    """Nobody wants to know."""
