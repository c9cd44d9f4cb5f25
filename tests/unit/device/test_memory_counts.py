# SPDX-License-Identifier: Apache-2.0
"""From where retries and failures of the allocator are counted: torch counts for the process."""

from __future__ import annotations

import weakref

from tests.unit.device.test_memory import Allocator, Clock, clock, counters, cuda, watch
from training_exporter.device.memory import AllocatorWatch, counter_start

__all__ = ["clock", "cuda", "watch"]


def counted(watch: AllocatorWatch) -> list[tuple[float | None, float | None]]:
    return [(reading.retries, reading.out_of_memory) for reading in watch.read()]


def test_counts_begin_with_the_watch(cuda: Allocator, clock: Clock) -> None:
    """On each device; also on one that holds memory only later."""
    cuda.counters = {0: counters(1, 1, retries=3, ooms=1), 1: counters(retries=2, ooms=2)}
    watch = AllocatorWatch(clock=clock)
    assert counted(watch) == [(0, 0)]

    cuda.counters = {0: counters(1, 1, retries=4, ooms=1), 1: counters(1, 1, retries=2, ooms=3)}
    clock.now += 5.0
    assert counted(watch) == [(1, 0), (0, 1)]


def test_with_cuda_everything_begins_at_zero(cuda: Allocator, clock: Clock) -> None:
    """Where it was not in use before, all counts are of this run, be they before its first step."""
    cuda.initialized = False
    watch = AllocatorWatch(clock=clock)
    cuda.initialized = True
    cuda.counters[0] = counters(1, 1, retries=3, ooms=1)

    assert counted(watch) == [(3, 1)]


def test_a_device_that_appears_late_does_not_bring_its_past(cuda: Allocator, clock: Clock) -> None:
    """What it counted before may be of an earlier run."""
    watch = AllocatorWatch(clock=clock)
    cuda.counters[2] = counters(1, 1, retries=3, ooms=1)

    assert counted(watch) == [(0, 0), (0, 0)]


def test_counts_that_somebody_resets(cuda: Allocator, watch: AllocatorWatch) -> None:
    """A count is never negative, and goes on from 0 as Prometheus expects it."""
    cuda.counters[0] = counters(1, 1, retries=3, ooms=3)
    watch = AllocatorWatch()
    cuda.counters[0] = counters(1, 1)
    assert counted(watch) == [(0, 0)]
    cuda.counters[0] = counters(1, 1, retries=1, ooms=1)
    assert counted(watch) == [(1, 1)]


def test_a_run_has_one_start(cuda: Allocator) -> None:
    """However many watches it has; another run has its own, and a dropped one leaves nothing."""
    run, later = Clock(), Clock()
    start = counter_start(run)
    cuda.counters[0] = counters(1, 1, retries=3, ooms=1)

    assert counted(AllocatorWatch(counter_start(run))) == [(3, 1)]
    assert counted(AllocatorWatch(counter_start(later))) == [(0, 0)]
    gone = weakref.ref(start)
    del run, start
    assert gone() is None
