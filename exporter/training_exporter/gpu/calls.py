# SPDX-License-Identifier: Apache-2.0
"""How long calls into the driver take, those included that have not returned."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import NamedTuple

STALL_SECONDS = 5.0
"""Calls of one sample that take longer together count as hanging. They take microseconds each, the
slowest (PCIe) 20 ms."""

INIT_STALL_SECONDS = 30.0
"""The same for nvmlInit, which wakes up every GPU where no persistence daemon keeps them awake."""


class _Round(NamedTuple):
    """Calls that are timed together: when the one in progress began, what those before it took, how
    much is allowed, and how many rounds before this one took too long."""

    started: float | None = None
    spent: float = 0.0
    bound: float = STALL_SECONDS
    stalls: int = 0

    def late(self, now: float) -> bool:
        under_way = 0.0 if self.started is None else now - self.started
        return self.spent + under_way > self.bound


class CallWatch:
    """Notes the calls of one thread, for others that cannot wait for it.

    A thread that hangs in the driver can tell nobody. Whoever wants to know compares the clock with
    the time at which the call in progress began. All that is known of a round is swapped as one
    tuple, so no lock is held while the driver hangs.

    Args:
        clock: a monotonic clock, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._round = _Round()

    def new_round(self, bound: float = STALL_SECONDS) -> None:
        """The calls from now on are taken to hang when they have taken so many seconds together."""
        self._round = _Round(bound=bound, stalls=self.stalls)

    def begin(self) -> None:
        """A call begins."""
        _, spent, bound, stalls = self._round
        self._round = _Round(self._clock(), spent, bound, stalls)

    def end(self) -> None:
        """The call has returned."""
        started, spent, bound, stalls = self._round
        assert started is not None
        self._round = _Round(None, spent + self._clock() - started, bound, stalls)

    @property
    def late(self) -> bool:
        """Whether the calls of this round take, or took, too long."""
        return self._round.late(self._clock())

    @property
    def stalls_before(self) -> int:
        """How many rounds before this one took too long."""
        return self._round.stalls

    @property
    def stalls(self) -> int:
        """How many rounds ever took too long, this one included; never falls."""
        current = self._round
        return current.stalls + current.late(self._clock())
