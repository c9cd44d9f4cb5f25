# SPDX-License-Identifier: Apache-2.0
"""What is known about a run beside its steps, and about the exporter itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from threading import Lock
from types import MappingProxyType
from typing import NamedTuple

from training_exporter.catalog import (
    COMPUTE_PHASES,
    ERROR_PLACES,
    GPU_PHASE,
    OBSERVE_PHASE,
    PAUSES,
    SCRAPE_PHASE,
    STARTING,
    STEP_PHASE,
)
from training_exporter.gpu.readings import AllocatorReading, GpuReadings
from training_exporter.layers.magnitudes import MagnitudeTotals
from training_exporter.layers.shown import LayerBoard

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


class RunStatus(NamedTuple):
    """Everything about a run that its steps do not say. Immutable; replaced as a whole.

    Attributes:
        run: name of the run, stable over restarts.
        rank: rank of this process in it.
        state: one of catalog.RUN_STATES.
        info: labels of `training_run_info`.
        failure: class of the exception that ended the run, None while none did.
        logged: the last value of each number the trainer logged.
        nan_filter: whether the trainer's own log hides NaN and Inf; None when that is not known.
        pauses: seconds spent by activity, one of catalog.PAUSES.
        compute: seconds that the device spent so far, by catalog.COMPUTE_PHASES.
        last_compute: the same of one of the last steps; empty while none is known.
        peak_flops: FLOP/s that this process could do at the precision of the run, None if unknown.
        report: the last report on a NaN, None while there was none.
        reports: how many there were.
        running_since: Unix time at which the run began to train, or went on after the last pause.
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
    compute: Mapping[str, float] = MappingProxyType(dict.fromkeys(COMPUTE_PHASES, 0.0))
    last_compute: Mapping[str, float] = _NO_VALUES
    peak_flops: float | None = None

    @property
    def labels(self) -> dict[str, str]:
        """The labels of every series."""
        return {"run": self.run, "rank": str(self.rank)}

    def last_progress(self, last_step: float | None) -> float | None:
        """Unix time at which something last got on, from that of the last step.

        After a long evaluation the last step is long ago, and yet nothing stands still.
        """
        known = [time for time in (last_step, self.running_since) if time is not None]
        return max(known, default=None)


class StatusBoard:
    """Where the present status of a run hangs: one thread replaces it, others read it.

    Attributes:
        status: the run.
        gpus: returns what is known of the GPUs at the moment, and never waits for their driver.
        memory: torch's allocator at the last step, a reading for each CUDA device in use.
        layers: the last pass over the layers of the model.
        magnitudes: how large the values in the gradients were.
    """

    __slots__ = ("__weakref__", "gpus", "layers", "magnitudes", "memory", "status")

    def __init__(self, status: RunStatus) -> None:
        self.status = status
        self.gpus: Callable[[], GpuReadings] = GpuReadings
        self.memory: tuple[AllocatorReading, ...] = ()
        self.layers = LayerBoard()
        self.magnitudes = MagnitudeTotals()


class ExporterHealth:
    """Counters of the exporter's own trouble and cost.

    Errors and scrapes come from several threads and take a lock. The seconds on the training thread
    are added by that thread alone, on each step, and take none.

    Attributes:
        step_seconds: hooks and device rows, on the training thread.
        observe_seconds: averages and detectors, on the training thread.
        scrape_seconds: drawing pages, on the server's threads.
        gpu_seconds: processor time of asking the GPUs' driver, on the sampler's thread.
    """

    __slots__ = (
        "_lock",
        "dropped_layer_passes",
        "dropped_observations",
        "dropped_series",
        "errors",
        "gpu_seconds",
        "observe_seconds",
        "scrape_seconds",
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

    def count_error(self, where: str) -> int:
        """Count an error at one of catalog.ERROR_PLACES, and return how many there were."""
        with self._lock:
            self.errors[where] += 1
            return self.errors[where]

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
