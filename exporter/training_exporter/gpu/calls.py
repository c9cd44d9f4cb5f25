# SPDX-License-Identifier: Apache-2.0
"""Since when a call into the driver has not returned."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

STALL_SECONDS = 5.0
"""A call that takes longer counts as hanging. They take microseconds, the slowest (PCIe) 20 ms."""

INIT_STALL_SECONDS = 30.0
"""The same for nvmlInit, which wakes up every GPU where no persistence daemon keeps them awake."""


class CallWatch:
    """Notes the calls of one thread, for others that cannot wait for it.

    A thread that hangs in the driver can tell nobody. Whoever wants to know compares the clock with
    the time at which the call in progress began. That time, its bound and the count of earlier
    stalls are swapped as one tuple, so no lock is held while the driver hangs.

    Args:
        clock: a monotonic clock, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._state: tuple[float | None, float, int] = (None, 0.0, 0)

    def begin(self, bound: float = STALL_SECONDS) -> None:
        """A call begins, and is taken to hang after so many seconds."""
        self._state = (self._clock(), bound, self._state[2])

    def end(self) -> float:
        """The call has returned; gives the seconds for which it was taken to hang, 0 usually."""
        started, bound, stalls = self._state
        assert started is not None
        took = self._clock() - started
        self._state = (None, bound, stalls + (took > bound))
        return took if took > bound else 0.0

    def look(self) -> tuple[bool, int]:
        """Whether a call hangs, and how many have ever, that one included."""
        started, bound, stalls = self._state
        stalled = started is not None and self._clock() - started > bound
        return stalled, stalls + stalled
