# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from training_exporter.timing.step_timer import StepTimer


class Clock:
    """Stands still until it is told to move."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_work_is_what_is_neither_waiting_nor_a_pause(clock: Clock) -> None:
    """The time between two laps is divided without rest."""
    timer, pauses = StepTimer(clock), []
    timer.start()

    with timer.pause(pauses.append):
        clock.advance(7)
    clock.advance(2)
    timer.data_arrived()
    clock.advance(1)

    assert timer.lap() == (1, 2)
    assert pauses == [7]


def test_waiting_begins_where_the_last_pause_ended(clock: Clock) -> None:
    """What the host does between the end of a step and a pause is work, such as draining a GPU."""
    timer = StepTimer(clock)
    timer.start()

    clock.advance(3)
    with timer.pause(lambda seconds: None):
        clock.advance(10)
    clock.advance(2)
    timer.data_arrived()
    clock.advance(4)

    assert timer.lap() == (7, 2)


def test_of_nested_pauses_the_outermost_counts(clock: Clock) -> None:
    """An evaluation that logs is one pause, not two."""
    timer, counted = StepTimer(clock), []
    timer.start()

    with timer.pause(counted.append):
        clock.advance(1)
        with timer.pause(counted.append):
            clock.advance(1)
        clock.advance(1)

    assert counted == [3]
    assert timer.lap() == (0, None)


def test_a_pause_ends_with_an_exception_too(clock: Clock) -> None:
    """A failed evaluation does not swallow the steps that follow."""
    timer = StepTimer(clock)
    timer.start()

    def fail_after(seconds: float) -> None:
        with timer.pause(lambda _: None):
            clock.advance(seconds)
            raise KeyError

    with pytest.raises(KeyError):
        fail_after(5)
    clock.advance(1)

    assert timer.lap() == (1, None)


def test_the_first_lap_is_unknown_when_nothing_said_where_it_began(clock: Clock) -> None:
    """No made-up duration for a step whose beginning nobody saw."""
    timer = StepTimer(clock)

    first = timer.lap()
    clock.advance(2)

    assert first == (None, None)
    assert timer.lap() == (2, None)


def test_more_waiting_than_there_was_time_is_not_believed(clock: Clock) -> None:
    """A loop that reports a wait longer than the step gets no step time rather than a negative."""
    timer = StepTimer(clock)
    timer.start()
    clock.advance(1)

    assert timer.lap(waited=5) == (None, 5)
