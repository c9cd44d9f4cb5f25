# SPDX-License-Identifier: Apache-2.0
"""PhaseClock by the clock of the host."""

from __future__ import annotations

import pytest

from training_exporter.catalog import FORWARD_BACKWARD, OPTIMIZER
from training_exporter.timing.phases import (
    EXPORTER,
    HostMarks,
    PhaseClock,
    PhaseTimes,
)


class Clock(HostMarks):
    """A host whose time passes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0
        self.mark = lambda: self.now


def during(clock: Clock, phases: PhaseClock, phase: str, seconds: float) -> None:
    phases.begin(phase)
    clock.now += seconds
    phases.end(phase)


def test_a_step_is_divided() -> None:
    """Micro-batches are summed, and what lies between phases belongs to none."""
    clock = Clock()
    phases = PhaseClock(clock)
    for _ in range(3):
        during(clock, phases, FORWARD_BACKWARD, 2.0)
        clock.now += 100.0
    during(clock, phases, OPTIMIZER, 0.5)
    phases.lap(7)

    assert phases.completed() == [PhaseTimes(7, {FORWARD_BACKWARD: 6.0, OPTIMIZER: 0.5})]
    assert phases.completed() == []


def test_an_inner_phase_takes_its_time_away() -> None:
    """What we do in the middle of the optimiser's time is not the optimiser's."""
    clock = Clock()
    phases = PhaseClock(clock)
    phases.begin(OPTIMIZER)
    clock.now += 1.0
    with phases.inside(EXPORTER):
        clock.now += 10.0
    clock.now += 2.0
    phases.lap(1)

    assert phases.completed() == [PhaseTimes(1, {OPTIMIZER: 3.0, EXPORTER: 10.0})]


def test_beginning_an_open_phase_changes_nothing() -> None:
    """Several hooks may say that it begins; the end of an inner `with` does not end it."""
    clock = Clock()
    phases = PhaseClock(clock)
    first = phases.begin(OPTIMIZER)
    again = phases.begin(OPTIMIZER)
    clock.now += 1.0
    with phases.inside(OPTIMIZER):
        clock.now += 2.0
    clock.now += 4.0
    phases.lap(1)

    assert (first, again) == (True, False)
    assert phases.completed() == [PhaseTimes(1, {OPTIMIZER: 7.0})]


def test_the_end_of_a_step_ends_its_phases() -> None:
    """The next one starts with none open, and ending what is not open is harmless."""
    clock = Clock()
    phases = PhaseClock(clock)
    phases.begin(OPTIMIZER)
    phases.begin(EXPORTER)
    clock.now += 1.0
    phases.lap(1)
    clock.now += 50.0
    phases.end(EXPORTER)
    phases.end(OPTIMIZER)
    phases.lap(2)

    assert phases.completed() == [
        PhaseTimes(1, {OPTIMIZER: 0.0, EXPORTER: 1.0}),
        PhaseTimes(2, {}),
    ]


def test_ending_a_phase_ends_what_was_left_open_inside() -> None:
    """An error jumped over the inner end."""
    clock = Clock()
    phases = PhaseClock(clock)
    phases.begin(FORWARD_BACKWARD)
    phases.begin(EXPORTER)
    clock.now += 1.0
    phases.end(FORWARD_BACKWARD)
    during(clock, phases, EXPORTER, 2.0)
    phases.lap(1)

    assert phases.completed() == [PhaseTimes(1, {FORWARD_BACKWARD: 0.0, EXPORTER: 3.0})]


def test_an_error_inside_ends_the_phase() -> None:
    """It passes through."""
    clock = Clock()
    phases = PhaseClock(clock)

    def fail() -> None:
        with phases.inside(EXPORTER):
            clock.now += 1.0
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    clock.now += 1.0
    phases.lap(1)

    assert phases.completed() == [PhaseTimes(1, {EXPORTER: 1.0})]


def test_an_abandoned_step_is_forgotten() -> None:
    """Its times are not those of the next one."""
    clock = Clock()
    phases = PhaseClock(clock)
    during(clock, phases, FORWARD_BACKWARD, 5.0)
    phases.begin(OPTIMIZER)
    clock.now += 5.0
    phases.discard()
    during(clock, phases, FORWARD_BACKWARD, 1.0)
    phases.lap(1)

    assert phases.completed() == [PhaseTimes(1, {FORWARD_BACKWARD: 1.0})]


def test_steps_that_nobody_collects_are_bounded() -> None:
    """The oldest stay, the others are counted."""
    phases = PhaseClock(Clock(), steps=2)
    for step in range(1, 6):
        phases.lap(step)

    assert [times.step for times in phases.completed()] == [1, 2]
    assert phases.dropped == 3


def test_the_host_s_own_clock_goes_forward() -> None:
    """Without any marks given, time is wall time."""
    phases = PhaseClock()
    with phases.inside(FORWARD_BACKWARD):
        sum(range(1000))
    phases.lap(1)

    assert 0 < phases.completed()[0].seconds[FORWARD_BACKWARD] < 10
