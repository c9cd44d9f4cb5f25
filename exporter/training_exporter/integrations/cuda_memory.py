# SPDX-License-Identifier: Apache-2.0
"""From torch's allocator to the exporter: on each step, and at the end of a run."""

from __future__ import annotations

from typing import Protocol

from training_exporter import catalog
from training_exporter.boundary import StepBoundary
from training_exporter.device.memory import AllocatorWatch, counter_start
from training_exporter.gpu.readings import AllocatorReading


class MemoryWatcher(Protocol):
    """What takes readings, and stops errors."""

    boundary: StepBoundary

    def observe_memory(self, readings: tuple[AllocatorReading, ...], /) -> object: ...


class MemoryObserver:
    """Hands readings of the allocator to the exporter. Raises nothing: it has its own boundary,
    because a step whose memory is unknown is still a step. For the training thread.

    Args:
        exporter: takes the readings. Retries and failures are counted from when it was made.
        watch: reads.
    """

    def __init__(self, exporter: MemoryWatcher, watch: AllocatorWatch | None = None) -> None:
        self._exporter = exporter
        self._watch = watch or AllocatorWatch(counter_start(exporter))

    def observe(self) -> float | None:
        """Take a reading.

        Returns:
            bytes held by live tensors on the device of the training, None when that is not known.
        """
        with self._exporter.boundary.at(catalog.STEP_ERROR):
            readings = self._watch.read()
            if readings:
                self._exporter.observe_memory(readings)
                return readings[0].allocated_bytes
        return None

    def finish(self, error: BaseException | None) -> None:
        """Take the last reading of a run, where that cannot hang.

        Args:
            error: what ended the run.
        """
        with self._exporter.boundary.at(catalog.LIFECYCLE_ERROR):
            readings = self._watch.read_at_the_end(error)
            if readings:
                self._exporter.observe_memory(readings)
