# SPDX-License-Identifier: Apache-2.0
"""When a run will end, with the evaluations and checkpoints that are still to come."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, floor
from typing import Final, NamedTuple

_MEMORY: Final = 8
"""Occurrences over which a duration is averaged, about."""


class Schedule(NamedTuple):
    """When a trainer means to do something.

    Attributes:
        every: steps between two, above 0.
        at_end: whether it does it at the last step too when that is no multiple.
    """

    every: float
    at_end: bool = False


class Rhythm(NamedTuple):
    """How often a run pauses for something, and for how long.

    Attributes:
        seconds: how long one takes, None when none has been seen.
        every: steps between two, None when it is not known.
        start: a step at which one was; the next are multiples of `every` after it.
    """

    seconds: float | None = None
    every: float | None = None
    start: int = 0

    def seconds_left(self, step: int, max_steps: int, schedule: Schedule | None = None) -> float:
        """Time that those after `step` and until `max_steps` take, as far as it is known.

        Args:
            schedule: goes before what was seen.
        """
        if self.seconds is None:
            return 0.0
        if schedule is not None:
            every, at_end = schedule
            return scheduled(step, max_steps, every, at_end=at_end) * self.seconds
        if self.every is None:
            return 0.0
        since = max(step - self.start, 0)
        return scheduled(since, max_steps - self.start, self.every) * self.seconds


class Recurrence:
    """Something that happens every so many steps: how often, how long, and when last.

    Several occurrences at one step, such as an evaluation on two data sets, are one that takes as
    long as both.
    """

    def __init__(self) -> None:
        self._seconds: float | None = None
        self._before: float | None = None
        self._count = 0
        self._at: int | None = None
        self._now = 0.0
        self._interval: int | None = None

    def happened(self, step: int, seconds: float) -> Rhythm:
        """Note that it happened at `step` and took `seconds`; returns what is known by now."""
        if step == self._at:
            self._now += seconds
        else:
            if self._at is not None:
                # After a step back the run starts anew, and the distance says nothing.
                self._interval = step - self._at if step > self._at else None
            self._at, self._now = step, seconds
            self._before = self._seconds
            self._count = min(self._count + 1, _MEMORY)
        before = self._before
        self._seconds = self._now if before is None else before + (self._now - before) / self._count
        return Rhythm(self._seconds, self._interval, step)


def scheduled(step: int, max_steps: int, every: float, *, at_end: bool = False) -> int:
    """How often something happens after `step` and until `max_steps`, at the multiples of `every`.

    Args:
        every: steps between two, above 0.
        at_end: whether it happens at the last step too when that is no multiple.
    """
    if step >= max_steps:
        return 0
    until = ceil(max_steps / every) if at_end else floor(max_steps / every)
    return until - floor(step / every)


def eta(
    step: int,
    max_steps: int | None,
    step_seconds: float | None,
    pauses: Mapping[str, Rhythm],
    schedules: Mapping[str, Schedule],
) -> float | None:
    """Seconds to the end of a run; None when its length or its pace is not known.

    Pauses of which none has been seen yet, or only one and no schedule, are not in it: then it is a
    lower bound.

    Args:
        step: the last finished step.
        max_steps: the step at which it is planned to end.
        step_seconds: recent mean time of a step, waiting for data included, pauses not.
        pauses: by activity, what was seen of it.
        schedules: by activity, what the trainer plans; goes before what was seen.
    """
    if not max_steps or max_steps < 0 or step_seconds is None:
        return None
    paused = [
        rhythm.seconds_left(step, max_steps, schedules.get(activity))
        for activity, rhythm in pauses.items()
    ]
    return max(0, max_steps - step) * step_seconds + sum(paused)
