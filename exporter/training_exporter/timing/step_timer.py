# SPDX-License-Identifier: Apache-2.0
"""Where the time between two steps went: work, waiting for data, pauses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter


class StepTimer:
    """Divides the time from the end of one step to the end of the next.

    Work is what is neither waiting nor a pause. So the time in which the host waits for the device
    to catch up is work, wherever in the loop it does that. For one thread.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self._clock = clock
        self._started: float | None = None
        self._idle_since: float | None = None
        self._pausing = False
        self._waited: float | None = None
        self._paused = 0.0

    def start(self) -> None:
        """The loop begins now. Without it, it begins with the first wait or lap."""
        self._started = self._idle_since = self._clock()
        self._pausing = False
        self._clear()

    def idle(self) -> None:
        """Nothing but waiting for data is to come now, until `data_arrived`."""
        if self._started is not None:
            self._idle_since = self._clock()

    def waited(self, seconds: float) -> None:
        """Count a wait for data that has just ended, unless it is part of a pause."""
        if self._pausing:
            return
        if self._started is None:
            self._started = self._clock() - seconds
        self._waited = seconds + (self._waited or 0.0)

    def data_arrived(self) -> None:
        """Count all the time since the last lap or pause as a wait for data."""
        if self._idle_since is not None:
            self.waited(self._clock() - self._idle_since)
            self._idle_since = None

    @contextmanager
    def pause(self, count: Callable[[float], object]) -> Iterator[None]:
        """While the training does something that is no step. Of nested pauses the outermost counts.

        Args:
            count: called with the seconds it took.
        """
        if self._pausing:
            yield
            return
        started = self._clock()
        try:
            self._pausing = True
            yield
        finally:
            self._pausing = False
            now = self._clock()
            if self._started is not None:
                self._paused += now - started
                self._idle_since = now
            count(now - started)

    def lap(self, waited: float | None = None) -> tuple[float | None, float | None]:
        """End a step.

        Args:
            waited: seconds of waiting as the loop itself measured them.

        Returns:
            seconds of work and of waiting since the last lap, each None when it is not known.
        """
        now, started = self._clock(), self._started
        waited = self._waited if waited is None else waited
        paused = self._paused
        self._started = self._idle_since = now
        self._clear()
        if started is None:
            return None, waited
        worked = now - started - paused - (waited or 0.0)
        return (worked if worked >= 0 else None), waited  # parts beyond the whole: a false report

    def _clear(self) -> None:
        self._waited = None
        self._paused = 0.0
