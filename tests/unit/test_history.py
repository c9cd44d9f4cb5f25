# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from math import inf, nan

from training_exporter.history import CAPACITY, CurveHistory, Point
from training_exporter.signals import StepSignals


def test_short_runs_keep_every_step() -> None:
    """Below the capacity each step has its own point."""
    history = CurveHistory()

    history.add_all([StepSignals(step, 0.0, loss=step * 1.0) for step in range(1, 4)])

    assert history.points() == [Point(1, 1.0, None), Point(2, 2.0, None), Point(3, 3.0, None)]


def test_a_million_steps_take_a_bounded_number_of_points_and_keep_a_lone_spike() -> None:
    """Merging keeps the extreme, so that a spike of one step among a million is still there."""
    history = CurveHistory()

    spike = StepSignals(314_159, 0.0, loss=50.0, grad_norm=0.5)
    healthy = StepSignals(0, 0.0, loss=1.0, grad_norm=0.5)
    history.add_all(spike if step == spike.step else healthy for step in range(1, 1_000_001))
    points = history.points()

    assert CAPACITY // 2 <= len(points) <= CAPACITY
    assert max(point.loss or 0 for point in points) == 50.0


def test_non_finite_steps_leave_a_gap_only_when_nothing_else_is_known() -> None:
    """A step without a value does not erase the other steps of its point."""
    history = CurveHistory()
    history.stride = 2

    losses = [1.0, nan, None, inf]
    history.add_all([StepSignals(step, 0.0, loss=loss) for step, loss in enumerate(losses, 1)])

    assert [point.loss for point in history.points()] == [1.0, None]


def test_no_infinite_value_is_a_point() -> None:
    """No curve could show it, and a checkpoint's state could not hold it."""
    history = CurveHistory()
    history.add_all(
        [StepSignals(step, 0.0, loss=x, grad_norm=x) for step, x in enumerate([inf, -inf], 1)]
    )

    assert {(point.loss, point.grad_norm) for point in history.points()} == {(None, None)}


def test_state_survives_json() -> None:
    """A history that takes over a saved state has the same points."""
    one, other = CurveHistory(), CurveHistory()
    one.add_all([StepSignals(step, 0.0, loss=1.0 / step) for step in range(1, 1000)])

    other.load_state_dict(json.loads(json.dumps(one.state_dict())))

    assert other.points() == one.points()
    assert other.stride == one.stride


def test_a_copy_goes_its_own_way() -> None:
    """What is added to one is not seen in the other."""
    one = CurveHistory()
    one.add_all([StepSignals(1, 0.0, loss=1.0)])

    one.copy().add_all([StepSignals(2, 0.0, loss=2.0)])

    assert one.points() == [Point(1, 1.0, None)]
