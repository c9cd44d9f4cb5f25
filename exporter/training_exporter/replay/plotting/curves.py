# SPDX-License-Identifier: Apache-2.0
"""The curves of a past run for a picture: as many points as one can see, whatever its length."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import inf, isfinite

from training_exporter.catalog import RESTART
from training_exporter.replay.judging import Episode, Judge
from training_exporter.replay.rows import Event
from training_exporter.signals import StepSignals

CAPACITY = 1000
"""Points of a curve kept at most: a picture is hardly wider than that."""
MAX_PARTS = 100
"""Restarts that are kept apart; with more of them lines over each other say nothing any more."""
AT_ONCE = 256
"""Values that wait to be taken into a point together."""
SMALLEST, LARGEST = 1e-200, 1e200
"""Values nearer to 0 are drawn as 0, and those beyond at the largest: what reckons with them on a
scale would underflow or overflow."""
_EXACT = 1 << 53
"""Whole numbers beyond it are no exact floats, which drawings are made of."""


@dataclass(slots=True)
class Point:
    """What stands for one or more values that follow on each other.

    Attributes:
        part: restarts before them.
        first_row, last_row, first_step, last_step: where they are.
        least, most, mean: of the finite ones; infinite and 0 where there are none.
        finite, non_finite: how many there are.
        level: what was known besides after the last of them, such as the average of all so far.
    """

    part: int
    first_row: int
    last_row: int
    first_step: int
    last_step: int
    least: float = inf
    most: float = -inf
    mean: float = 0.0
    finite: int = 0
    non_finite: int = 0
    level: float | None = None

    def absorb(self, later: Point) -> None:
        """Stand for what a later point stands for, too."""
        self.last_row, self.last_step = later.last_row, later.last_step
        if later.level is not None:  # it is not known where a restart cut a point short
            self.level = later.level
        self.mean = _mean(self.mean, self.finite, later.mean, later.finite)
        self.finite += later.finite
        self.non_finite += later.non_finite
        self.least, self.most = min(self.least, later.least), max(self.most, later.most)


class Curve:
    """A signal over a run. When there are too many points, pairs of them become one.

    Args:
        level: asked for what is drawn beside the values, each time that a point is complete.

    Attributes:
        points: oldest first; the last values are in them once the curve is finished.
        stride: how many values a point stands for.
    """

    def __init__(self, level: Callable[[], float | None] = lambda: None) -> None:
        self.points: list[Point] = []
        self.stride = 1
        self._level = level
        self._size = 0  # values in the last point
        self._values: list[float] = []  # that are in no point yet, as many at once cost less
        self._room = 1  # for them
        self._part = 0
        self._first = self._last = (0, 0)

    def add(self, part: int, row: int, step: int, value: float) -> None:
        """Take in the next value."""
        values = self._values
        if values and part != self._part:
            self._enter()
        if not values:
            self._part, self._first = part, (row, step)
        values.append(value)
        self._last = (row, step)
        if len(values) >= self._room:
            self._enter()
            if self._size >= self.stride:
                self._complete()

    def finish(self) -> None:
        """The run is over, and the last point complete."""
        if self._values:
            self._enter()
        if self.points:
            self._complete()

    @property
    def non_finite(self) -> int:
        """How many values are NaN or infinite."""
        return sum(point.non_finite for point in self.points)

    def _enter(self) -> None:
        """Take the values into the last point, or a new one if that is of another part or full."""
        new = _point_of(self._part, self._first, self._last, self._values)
        if self._size < self.stride and self.points and self.points[-1].part == new.part:
            self.points[-1].absorb(new)
            self._size += len(self._values)
        else:
            self._make_room()
            self.points.append(new)
            self._size = len(self._values)
        self._values.clear()
        self._room = min(AT_ONCE, self.stride - self._size % self.stride)

    def _complete(self) -> None:
        level = self._level()
        self.points[-1].level = None if level is None else _drawable(level)

    def _make_room(self) -> None:
        """Halve the points, of which none is open; those at the ends of parts may stay single."""
        if len(self.points) < CAPACITY:
            return
        fewer: list[Point] = []
        single = False
        for point in self.points:
            if single and fewer[-1].part == point.part:
                fewer[-1].absorb(point)
                single = False
            else:
                fewer.append(point)
                single = True
        self.points = fewer
        self.stride *= 2


def _point_of(
    part: int, first: tuple[int, int], last: tuple[int, int], values: Sequence[float]
) -> Point:
    point = Point(part, first[0], last[0], first[1], last[1])
    finite = [_drawable(value) for value in values if isfinite(value)]
    point.finite, point.non_finite = len(finite), len(values) - len(finite)
    if finite:
        point.least, point.most = min(finite), max(finite)
        point.mean = sum(finite) / len(finite)
    return point


class Sketch:
    """Follows a run while it is judged, and keeps what is drawn of it.

    The averages are those of the monitor that judges: it adds them up when it is asked, which is
    once for each point and not on each row.

    Args:
        judge: a verdict on the run; of several any, as they differ in their findings alone.
        steps_known: False when the log has no steps and its rows are counted.

    Attributes:
        loss, grad_norm: with the monitor's averages as levels.
        clip_threshold: norm above which gradients were clipped.
        evaluations: loss by data set.
    """

    def __init__(self, judge: Judge, *, steps_known: bool) -> None:
        monitor = judge.monitor
        self.loss = Curve(lambda: monitor.snapshot.loss_ema)
        self.grad_norm = Curve(lambda: monitor.snapshot.grad_norm_ema)
        self.clip_threshold = Curve()
        self.evaluations: dict[str, Curve] = {}
        self._judge = judge
        self._steps_known = steps_known
        self._restart = [status.kind for status in monitor.anomalies].index(RESTART)
        self._rows = 0
        self._behind = 0
        self._furthest: int | None = None
        self._part = 0

    def note(self, event: Event) -> None:
        """Take in a step or an evaluation that was judged."""
        step = event.step
        if not isinstance(event, StepSignals):
            if event.loss is not None:
                curve = self.evaluations.setdefault(event.dataset, Curve())
                curve.add(self._part, max(0, self._rows - 1), step, event.loss)
            return
        row, self._rows = self._rows, self._rows + 1
        self._part = min(MAX_PARTS, self._judge.monitor.anomalies[self._restart].total)
        if self._furthest is None or step > self._furthest:
            self._furthest = step
        else:
            self._behind += 1
        if event.loss is not None:
            self.loss.add(self._part, row, step, event.loss)
        if event.grad_norm is not None:
            self.grad_norm.add(self._part, row, step, event.grad_norm)
        if event.clip_threshold is not None:
            self.clip_threshold.add(self._part, row, step, event.clip_threshold)

    def finish(self) -> None:
        """The run is over."""
        for curve in self._curves():
            curve.finish()

    def axis(self) -> Axis:
        """What the curves are drawn over: steps, unless there are none that could order them."""
        points = [point for curve in self._curves() for point in curve.points]
        steps = Axis.over(points, by_row=False, label="optimiser step")
        if not self._steps_known:
            return Axis.over(points, by_row=True, label="row of the log, which has no steps")
        if self._part >= MAX_PARTS or 2 * self._behind > self._rows:
            return Axis.over(points, by_row=True, label="row of the log, as its steps go back")
        if max(abs(steps.low), abs(steps.high)) > _EXACT:
            return Axis.over(
                points, by_row=True, label="row of the log, as its steps are too large"
            )
        return steps

    def _curves(self) -> tuple[Curve, ...]:
        return (self.loss, self.grad_norm, self.clip_threshold, *self.evaluations.values())


@dataclass(frozen=True)
class Axis:
    """Where things are from left to right.

    Attributes:
        by_row: True for rows of the log, False for steps.
        low, high: the first and the last place.
        label: what the places are.
    """

    by_row: bool
    low: int
    high: int
    label: str

    @classmethod
    def over(cls, points: list[Point], *, by_row: bool, label: str) -> Axis:
        """The axis on which all points have a place."""
        ends = [end for p in points for end in cls._ends(p, by_row)]
        return cls(by_row, min(ends), max(ends), label)

    def span(self, thing: Point | Episode) -> tuple[int, int]:
        """Where it begins and ends."""
        first, last = self._ends(thing, self.by_row)
        return min(first, last), max(first, last)

    def parts(self, points: Iterable[Point]) -> Iterator[list[Point]]:
        """The points between which a line may be drawn: over steps, a restart ends it."""
        if self.by_row:
            yield list(points)
            return
        for _, part in groupby(points, key=lambda point: point.part):
            yield list(part)

    def pieces(self, curve: Curve) -> Iterator[list[Point]]:
        """The same of the points that have finite values; where there are none, a line ends."""
        for part in self.parts(curve.points):
            for finite, piece in groupby(part, key=lambda point: point.finite > 0):
                if finite:
                    yield list(piece)

    @staticmethod
    def _ends(thing: Point | Episode, by_row: bool) -> tuple[int, int]:
        if by_row:
            return thing.first_row, thing.last_row
        first = thing.first_step if isinstance(thing, Point) else thing.begun.step
        return first, thing.last_step


def _drawable(value: float) -> float:
    if abs(value) < SMALLEST:
        return 0.0
    return max(-LARGEST, min(LARGEST, value))


def _mean(mean: float, count: int, other: float, others: int) -> float:
    """The mean of two means of so many values each."""
    return mean + (other - mean) * (others / (count + others)) if others else mean
