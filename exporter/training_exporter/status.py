# SPDX-License-Identifier: Apache-2.0
"""What is known about a run beside its steps, and about the exporter itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from threading import Lock
from traceback import TracebackException
from types import MappingProxyType
from typing import Final, NamedTuple

from training_exporter.catalog import (
    COMPUTE_PHASES,
    CRASHED,
    ERROR_PLACES,
    GPU_PHASE,
    OBSERVE_PHASE,
    PAUSES,
    RESUME_FAILURES,
    SCRAPE_PHASE,
    STARTING,
    STEP_PHASE,
)
from training_exporter.gpu.readings import AllocatorReading, GpuReadings
from training_exporter.layers.magnitudes import MagnitudeTotals
from training_exporter.layers.shown import LayerBoard

MOST_OF_REASON: Final = 200
"""Characters of what an exception says that are kept."""

_EMPTY: Mapping[str, str] = MappingProxyType({})
_NO_VALUES: Mapping[str, float] = MappingProxyType({})


class ReportNote(NamedTuple):
    """The last report on a NaN, as page and metrics show it.

    Attributes:
        source: where it came from, one of catalog.NON_FINITE_SOURCES.
        summary: what happened and the likely cause, in one line.
        path: its file, None when it could not be written.
        alarming: False for an overflow that is how mixed precision finds its scale.
    """

    source: str
    summary: str
    path: str | None
    alarming: bool


class ForwardPasses(NamedTuple):
    """The forward passes of training so far.

    Attributes:
        begun, ended: on the host.
        seconds: what they took on the device, None while that is not known.
    """

    begun: int = 0
    ended: int = 0
    seconds: float | None = None

    def plus(self, begun: int, ended: int, seconds: float | None) -> ForwardPasses:
        """These and some more, of which the time may not be known."""
        known = self.seconds if seconds is None else seconds + (self.seconds or 0.0)
        return ForwardPasses(self.begun + begun, self.ended + ended, known)


class RunStatus(NamedTuple):
    """Everything about a run that its steps do not say. Immutable; replaced as a whole.

    Attributes:
        run: name of the run, stable over restarts.
        rank: rank of this process in it.
        state: one of catalog.RUN_STATES.
        info: labels of `training_run_info`.
        failure: class of the exception that ended the run, None while none did.
        reason: the beginning of what that exception says, None if that is nothing.
        logged: the last value of each number the trainer logged.
        nan_filter: whether the trainer's own log hides NaN and Inf; None when that is not known.
        pauses: seconds spent by activity, one of catalog.PAUSES.
        compute: seconds that the device spent so far, by catalog.COMPUTE_PHASES.
        last_compute: the same of one of the last steps; empty while none is known.
        forward: its forward passes, None where they are not seen.
        peak_flops: FLOP/s that this process could do at the precision of the run, None if unknown.
        report: the last report on a NaN, None while there was none.
        reports: how many there were.
        restarts: times that the run was started again in another process.
        running_since: Unix time at which the run began to train, or went on after the last pause.
        summary: the summary as it was told at the end, pairs of a heading and what stands behind
            it; empty while none was.
    """

    run: str
    rank: int
    state: str = STARTING
    info: Mapping[str, str] = _EMPTY
    failure: str | None = None
    logged: Mapping[str, float] = _NO_VALUES
    nan_filter: bool | None = None
    pauses: Mapping[str, float] = MappingProxyType(dict.fromkeys(PAUSES, 0.0))
    running_since: float | None = None
    report: ReportNote | None = None
    reports: int = 0
    restarts: int = 0
    compute: Mapping[str, float] = MappingProxyType(dict.fromkeys(COMPUTE_PHASES, 0.0))
    last_compute: Mapping[str, float] = _NO_VALUES
    forward: ForwardPasses | None = None
    peak_flops: float | None = None
    reason: str | None = None
    summary: tuple[tuple[str, str], ...] = ()

    @property
    def labels(self) -> dict[str, str]:
        """The labels of every series."""
        return {"run": self.run, "rank": str(self.rank)}

    def crashed_by(self, error: Exception) -> RunStatus:
        """The status of the run after an exception has ended it."""
        return self._replace(state=CRASHED, failure=type(error).__name__, reason=_said_by(error))

    def plus_compute(self, seconds: Mapping[str, float]) -> RunStatus:
        """The status after a step in which the device spent seconds by phase. What is under another
        name than COMPUTE_PHASES is left out."""
        last = {phase: seconds[phase] for phase in COMPUTE_PHASES if phase in seconds}
        sums = {phase: sum_ + last.get(phase, 0.0) for phase, sum_ in self.compute.items()}
        return self._replace(compute=MappingProxyType(sums), last_compute=MappingProxyType(last))

    def last_progress(self, last_step: float | None) -> float | None:
        """Unix time at which something last got on, from that of the last step.

        After a long evaluation the last step is long ago, and yet nothing stands still.
        """
        known = [time for time in (last_step, self.running_since) if time is not None]
        return max(known, default=None)


def _said_by(error: Exception) -> str | None:
    """The first line of what an exception says, as a log, a page and a chat can bear it."""
    # By way of traceback, which bears an exception whose own text raises.
    said = str(TracebackException(type(error), error, None, limit=0, lookup_lines=False))
    line = " ".join(said.strip().partition("\n")[0].split())[:MOST_OF_REASON]
    return "".join(sign if sign.isprintable() else "?" for sign in line) or None


class StatusBoard:
    """Where the present status of a run hangs: one thread replaces it, others read it.

    Attributes:
        status: the run.
        gpus: returns what is known of the GPUs at the moment, and never waits for their driver.
        memory: torch's allocator at the last step, a reading for each CUDA device in use.
        layers: the last pass over the layers of the model.
        magnitudes: how large the values in the gradients were.
        training_thread: identifier of the thread that trains, None before it is known.
        before_status: called with each new status just before others can see it.
        after_end: called whenever the run has been concluded.
    """

    __slots__ = (
        "__weakref__", "_status", "after_end", "before_status", "gpus", "layers", "magnitudes",
        "memory", "training_thread",
    )  # fmt: skip

    def __init__(self, status: RunStatus) -> None:
        self.before_status: Callable[[RunStatus], object] = _nothing
        self.after_end: Callable[[], object] = _nothing
        self._status = status
        self.gpus: Callable[[], GpuReadings] = GpuReadings
        self.memory: tuple[AllocatorReading, ...] = ()
        self.layers = LayerBoard()
        self.magnitudes = MagnitudeTotals()
        self.training_thread: int | None = None

    @property
    def status(self) -> RunStatus:
        return self._status

    @status.setter
    def status(self, status: RunStatus) -> None:
        self.before_status(status)
        self._status = status


def _nothing(*told: object) -> None:
    """Nobody wants to know."""


class ExporterHealth:
    """Counters of the exporter's own trouble and cost.

    Errors and scrapes come from several threads and take a lock. The seconds on the training thread
    are added by that thread alone, on each step, and take none.

    Attributes:
        step_seconds: hooks and device rows, on the training thread.
        observe_seconds: averages and detectors, on the training thread.
        scrape_seconds: drawing pages, on the server's threads.
        gpu_seconds: processor time of asking the GPUs' driver, on the sampler's thread.
        sink_drops: returns what sinks were not told, by sink.
    """

    __slots__ = (
        "_lock",
        "dropped_layer_passes",
        "dropped_observations",
        "dropped_phases",
        "dropped_series",
        "errors",
        "gpu_seconds",
        "observe_seconds",
        "resume_failures",
        "scrape_seconds",
        "sink_drops",
        "step_seconds",
    )

    def __init__(self) -> None:
        self._lock = Lock()
        self.errors = dict.fromkeys(ERROR_PLACES, 0)
        self.step_seconds = 0.0
        self.observe_seconds = 0.0
        self.scrape_seconds = 0.0
        self.gpu_seconds = 0.0
        self.dropped_observations = 0
        self.dropped_series = 0
        self.dropped_layer_passes = 0
        self.dropped_phases = 0
        self.resume_failures = dict.fromkeys(RESUME_FAILURES, 0)
        self.sink_drops: Callable[[], Mapping[str, int]] = dict

    def count_error(self, where: str) -> int:
        """Count an error at one of catalog.ERROR_PLACES, and return how many there were."""
        with self._lock:
            self.errors[where] += 1
            return self.errors[where]

    def count_resume_failure(self, reason: str) -> None:
        """Count a state that was not taken over, for one of catalog.RESUME_FAILURES."""
        self.resume_failures[reason] += 1

    def add_scrape(self, seconds: float) -> None:
        """Count the time that a page took."""
        with self._lock:
            self.scrape_seconds += seconds

    def add_gpu_sample(self, seconds: float) -> None:
        """Count the processor time of a sample; one thread does."""
        self.gpu_seconds += seconds

    @property
    def overhead_seconds(self) -> dict[str, float]:
        """Seconds by phase, one of catalog.PHASES."""
        return {
            STEP_PHASE: self.step_seconds,
            OBSERVE_PHASE: self.observe_seconds,
            SCRAPE_PHASE: self.scrape_seconds,
            GPU_PHASE: self.gpu_seconds,
        }
