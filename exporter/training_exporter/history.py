# SPDX-License-Identifier: Apache-2.0
"""The curves of a whole run in a few hundred points, whatever its length."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import inf
from typing import Any, NamedTuple

from training_exporter.signals import StepSignals

CAPACITY = 480
"""Points kept at most: more than a drawing 240 pixels wide can show, few enough to copy."""


class Point(NamedTuple):
    """What stands for one or more steps: the last step and the extreme finite value of each.

    The extreme and not the mean, since a spike is what one looks for in such a curve.
    """

    step: int
    loss: float | None
    grad_norm: float | None


class CurveHistory:
    """Loss and gradient norm over all steps so far.

    Each point stands for `stride` steps. When there are too many, pairs of points are merged and
    the stride doubles.
    """

    __slots__ = ("_loss", "_norm", "_pending", "_points", "stride")

    def __init__(self) -> None:
        self._points: list[Point] = []
        self.stride = 1
        self._restart_point()

    def _restart_point(self) -> None:
        self._pending = 0
        self._loss: float | None = None
        self._norm: float | None = None

    def add_all(self, steps: Iterable[StepSignals]) -> None:
        """Add steps, oldest first."""
        loss_peak, norm_peak, pending = self._loss, self._norm, self._pending
        for step in steps:
            loss, norm = step.loss, step.grad_norm
            # A NaN is not above anything, and an infinite value is no point of a curve.
            if loss is not None and -inf < loss < inf and (loss_peak is None or loss > loss_peak):
                loss_peak = loss
            if norm is not None and -inf < norm < inf and (norm_peak is None or norm > norm_peak):
                norm_peak = norm
            pending += 1
            if pending >= self.stride:
                self._add_point(Point(step.step, loss_peak, norm_peak))
                loss_peak, norm_peak, pending = None, None, 0
        self._loss, self._norm, self._pending = loss_peak, norm_peak, pending

    def _add_point(self, point: Point) -> None:
        self._points.append(point)
        if len(self._points) >= CAPACITY:
            self._points = [
                Point(b.step, _larger(a.loss, b.loss), _larger(a.grad_norm, b.grad_norm))
                for a, b in zip(self._points[::2], self._points[1::2], strict=True)
            ]
            self.stride *= 2

    def copy(self) -> CurveHistory:
        """Another history of the same steps."""
        other = CurveHistory()
        other._points, other.stride = self._points.copy(), self.stride
        other._pending, other._loss, other._norm = self._pending, self._loss, self._norm
        return other

    def points(self) -> list[Point]:
        """A copy of the points, oldest first."""
        return self._points.copy()

    def state_dict(self) -> dict[str, Any]:
        return {"stride": self.stride, "points": [list(point) for point in self._points]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over saved points; anything missing starts afresh."""
        points = [
            Point(int(step), _number(loss), _number(norm))
            for step, loss, norm in state.get("points", ())
        ]
        self._points = points if len(points) < CAPACITY else []
        self.stride = max(1, int(state.get("stride", 1)))
        self._restart_point()


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _larger(a: float | None, b: float | None) -> float | None:
    if a is None:
        return b
    return a if b is None or a >= b else b
