# SPDX-License-Identifier: Apache-2.0
"""When a run will end."""

from __future__ import annotations

import pytest

from training_exporter.timing.eta import Recurrence, Rhythm, Schedule, eta, scheduled


def test_steps_alone() -> None:
    """Remaining steps at the recent pace."""
    assert eta(40, 100, 0.5, {}, {}) == 30.0


def test_evaluations_and_saves_take_their_time() -> None:
    """Six hundred seconds of steps, three planned evaluations of a minute, two saves as seen."""
    pauses = {"evaluation": Rhythm(60.0, 1, 390), "saving": Rhythm(10.0, 300, 300)}
    plan = {"evaluation": Schedule(200)}

    assert eta(400, 1000, 1.0, pauses, plan) == 600 + 180 + 20


@pytest.mark.parametrize("rhythm", [Rhythm(), Rhythm(60.0), Rhythm(None, 5)])
def test_what_is_not_known_yet_is_left_out(rhythm: Rhythm) -> None:
    """None has been seen yet, or only one."""
    assert eta(0, 10, 1.0, {"evaluation": rhythm, "saving": Rhythm(5.0, 10)}, {}) == 15.0


def test_a_plan_needs_but_one_to_be_seen() -> None:
    """At 5 for two seconds; so at 10, 15 and, since it is planned so, at the end."""
    pauses = {"saving": Rhythm(2.0, None, 5)}

    assert eta(5, 17, 1.0, pauses, {"saving": Schedule(5, at_end=True)}) == 12 + 3 * 2
    assert eta(5, 17, 1.0, pauses, {"saving": Schedule(5)}) == 12 + 2 * 2
    assert eta(5, 17, 1.0, {}, {"saving": Schedule(5)}) == 12


@pytest.mark.parametrize(("max_steps", "pace"), [(None, 1.0), (0, 1.0), (-1, 1.0), (10, None)])
def test_no_end_or_no_pace_is_no_time(max_steps: int | None, pace: float | None) -> None:
    """Absent, not 0."""
    assert eta(5, max_steps, pace, {}, {}) is None


def test_a_run_at_its_end_or_beyond_needs_nothing() -> None:
    """The remaining time is never negative."""
    pauses = {"saving": Rhythm(2.0, 5, 10)}

    assert eta(10, 10, 1.0, pauses, {}) == eta(12, 10, 1.0, pauses, {}) == 0.0


def test_values_that_come_late_do_not_bring_a_pause_back() -> None:
    """The last step that was read is 98, and the evaluation after 100 is done: 200 is to come."""
    assert Rhythm(60.0, 100, 100).seconds_left(98, 200) == 60.0


@pytest.mark.parametrize(
    ("step", "max_steps", "every", "at_end", "times"),
    [
        (0, 100, 25, False, 4),
        (24, 100, 25, False, 4),
        (25, 100, 25, False, 3),  # that at 25 is done
        (99, 100, 25, False, 1),
        (100, 100, 25, False, 0),
        (0, 110, 25, False, 4),
        (0, 110, 25, True, 5),
        (109, 110, 25, True, 1),
        (110, 110, 25, True, 0),
        (0, 100, 25, True, 4),  # the last step is a multiple already
        (0, 10, 100, False, 0),
        (0, 100, 33.3, False, 3),  # an epoch need not be a whole number of steps
    ],
)
def test_scheduled(step: int, max_steps: int, every: float, at_end: bool, times: int) -> None:
    """At the multiples, as the Trainer does it."""
    assert scheduled(step, max_steps, every, at_end=at_end) == times


def test_every_schedule_agrees_with_counting() -> None:
    """All small cases against the definition."""
    for every in range(1, 8):
        for end in range(15):
            for step in range(end + 1):
                due = [at for at in range(step + 1, end + 1) if at % every == 0]
                last = 1 if step < end and end not in due else 0
                assert scheduled(step, end, every) == len(due)
                assert scheduled(step, end, every, at_end=True) == len(due) + last


def test_a_recurrence_is_seen_from_its_second_time_on() -> None:
    """Then the next follow from the interval and the last time."""
    seen = Recurrence()
    assert seen.happened(20, 3.0) == Rhythm(3.0, None, 20)
    known = seen.happened(40, 5.0)
    assert known == Rhythm(4.0, 20, 40)
    assert [known.seconds_left(40, end) for end in (100, 99, 40)] == [12.0, 8.0, 0.0]


def test_several_at_one_step_are_one() -> None:
    """Two data sets are evaluated at each occasion: 3 + 1 seconds, then 5 + 3."""
    seen = Recurrence()
    for step, seconds in ((10, 3.0), (10, 1.0), (20, 5.0)):
        seen.happened(step, seconds)

    assert seen.happened(20, 3.0) == Rhythm(6.0, 10, 20)


def test_durations_follow_a_change() -> None:
    """Twenty short ones, then long ones: the mean leaves the old level behind."""
    seen = Recurrence()
    for at in range(20):
        seen.happened(at, 1.0)
    for at in range(20, 60):
        known = seen.happened(at, 9.0)

    assert known.seconds == pytest.approx(9.0, rel=0.01)


def test_a_step_back_forgets_the_interval() -> None:
    """A restart from an old checkpoint says nothing about how often something happens."""
    seen = Recurrence()
    known = [seen.happened(step, 1.0).every for step in (100, 200, 50, 150)]

    assert known == [None, 100, None, 100]
