# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

from training_exporter.history import CAPACITY, CurveHistory, Point


def test_short_runs_keep_every_step() -> None:
    """Below the capacity each step has its own point."""
    history = CurveHistory()

    for step in range(1, 4):
        history.add(step, step * 1.0, None)

    assert history.points() == [Point(1, 1.0, None), Point(2, 2.0, None), Point(3, 3.0, None)]


def test_a_million_steps_take_a_bounded_number_of_points_and_keep_a_lone_spike() -> None:
    """Merging keeps the extreme, so that a spike of one step among a million is still there."""
    history = CurveHistory()

    for step in range(1, 1_000_001):
        history.add(step, 50.0 if step == 314_159 else 1.0, 0.5)
    points = history.points()

    assert CAPACITY // 2 <= len(points) <= CAPACITY
    assert max(point.loss or 0 for point in points) == 50.0


def test_non_finite_steps_leave_a_gap_only_when_nothing_else_is_known() -> None:
    """A step without a value does not erase the other steps of its point."""
    history = CurveHistory()
    history.stride = 2

    for step, loss in enumerate([1.0, None, None, None], 1):
        history.add(step, loss, None)

    assert [point.loss for point in history.points()] == [1.0, None]


def test_state_survives_json() -> None:
    """A history that takes over a saved state has the same points."""
    one, other = CurveHistory(), CurveHistory()
    for step in range(1, 1000):
        one.add(step, 1.0 / step, None)

    other.load_state_dict(json.loads(json.dumps(one.state_dict())))

    assert other.points() == one.points()
    assert other.stride == one.stride
