# SPDX-License-Identifier: Apache-2.0
"""How long calls take, seen by others while they do not return."""

from __future__ import annotations

from collections.abc import Iterator

from tests.unit.gpu.test_sampler import Clock
from training_exporter.gpu.calls import STALL_SECONDS, CallWatch


def looks(clock: Clock, calls: CallWatch, *seconds: float) -> Iterator[tuple[bool, int]]:
    """What is seen before, during and after each call that takes so long."""
    for each in seconds:
        calls.begin()
        yield calls.late, calls.stalls
        clock.now += each
        yield calls.late, calls.stalls
        calls.end()
        yield calls.late, calls.stalls


def test_stalls_never_fall() -> None:
    """Not between the last look at a hanging call and its return: they are a counter."""
    clock = Clock()
    calls = CallWatch(clock)
    seen = []
    for seconds in (1.0, STALL_SECONDS + 1, 1.0, STALL_SECONDS + 1):
        calls.new_round()
        seen += looks(clock, calls, seconds)

    assert [stalls for _, stalls in seen] == [0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 2, 2]
    assert [number for number, (late, _) in enumerate(seen) if late] == [4, 5, 10, 11]


def test_calls_of_a_round_count_together() -> None:
    """None hangs, but the values are late; time between calls is not the driver's."""
    clock = Clock()
    calls = CallWatch(clock)
    seen = list(looks(clock, calls, 3.0))
    clock.now += 60.0
    seen += looks(clock, calls, 3.0, 3.0)

    assert [stalls for _, stalls in seen] == [0, 0, 0, 0, 1, 1, 1, 1, 1]
    assert calls.stalls_before == 0
    calls.new_round()
    assert (calls.late, calls.stalls, calls.stalls_before) == (False, 1, 1)
