# SPDX-License-Identifier: Apache-2.0
"""Marks on the device's own stream: when it got to a point of the step, read once it has passed.

A clock on the host would see how fast kernels are launched, not how long they take.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol

import torch

from training_exporter.device.rows import Accelerator
from training_exporter.timing.phases import PhaseClock


class TimedEvent(Protocol):
    """A mark in the device's queue of work that knows when it was passed."""

    def query(self) -> bool:
        """Whether the device has passed the mark. Never waits."""
        ...

    def synchronize(self) -> None:
        """Wait until the device has passed the mark."""
        ...

    def elapsed_time(self, end: Any, /) -> float:
        """Milliseconds from this mark to another. Both must have been passed."""
        ...


class TimedBackend(Protocol):
    """What one kind of device does in its own way. Tests put a device with late events here."""

    def new_event(self) -> TimedEvent: ...

    def record(self, event: TimedEvent) -> None:
        """Put the mark behind the work that is queued now."""
        ...

    def capturing(self) -> bool:
        """Whether a graph is being captured, when no event may be recorded or asked."""
        ...


class TimedAccelerator(Accelerator):
    """The events of a device, with timing. Raises what `Accelerator` does."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.new_event = partial(self.new_event, enable_timing=True)

    def record(self, event: Any) -> None:
        if hasattr(self._module, "current_stream"):
            # That of the device the work is on, which need not be the current one.
            event.record(self._module.current_stream(self._device))
        else:
            event.record()


class EventMarks:
    """Marks from a pool of events on one device.

    Events are made when they are first needed, up to a bound, and used again for ever after. They
    see the stream that is current on `device`; work on other streams or devices counts only as far
    as that stream waits for it.

    Args:
        limit: events in the pool. A step of n micro-batches needs up to 6 n + 2, and those of the
            past are free again once the device has passed them. So only for a device that is behind
            by thousands of micro-batches there are none.
    """

    immediate = False

    def __init__(
        self, device: torch.device, *, limit: int = 16384, backend: TimedBackend | None = None
    ) -> None:
        self._backend: TimedBackend = backend if backend is not None else TimedAccelerator(device)
        self._unmade = limit
        self._free: list[TimedEvent] = []

    def mark(self) -> TimedEvent | None:
        """A mark behind the work that is queued now; None when none is free or a graph is being
        captured."""
        if self._backend.capturing():
            return None
        if self._free:
            event = self._free.pop()
        elif self._unmade:
            self._unmade -= 1
            event = self._backend.new_event()
        else:
            return None
        self._backend.record(event)
        return event

    def elapsed(self, start: TimedEvent, end: TimedEvent) -> float | None:
        if self._backend.capturing() or not end.query():
            return None
        try:
            return start.elapsed_time(end) / 1e3
        except (RuntimeError, ValueError):
            return None  # the start is on another stream, and has not been passed

    def wait(self, mark: TimedEvent) -> None:
        mark.synchronize()

    def release(self, mark: TimedEvent) -> None:
        self._free.append(mark)


def open_phases(device: torch.device) -> PhaseClock:
    """A clock for the phases of a training on `device`.

    Raises:
        TypeError: the device type has no events, so that nothing can be timed without waiting.
    """
    return PhaseClock(None if device.type == "cpu" else EventMarks(device))
