# SPDX-License-Identifier: Apache-2.0
"""What there is to plot of a step."""

from __future__ import annotations

from math import isnan, nan

from training_exporter.monitor import TrainingMonitor
from training_exporter.signals import StepSignals
from training_exporter.sinks.points import points_of

EMPTY = TrainingMonitor([]).snapshot


def test_what_is_known_and_nothing_else() -> None:
    """NaN is as it was; what is None is not there."""
    step = StepSignals(
        7, 107.0, loss=nan, learning_rates={"all": 0.1}, tokens=30.0, step_seconds=1.0,
        data_wait_seconds=0.5,
    )  # fmt: skip

    (point,) = points_of([step], EMPTY)

    assert (point.step, point.timestamp) == (7, 107.0)
    values = dict(point.values)
    assert isnan(values.pop("loss"))
    assert values == {
        "learning_rate": 0.1,
        "tokens_per_second": 20.0,
        "step_seconds": 1.0,
        "data_wait_seconds": 0.5,
    }


def test_learning_rates_by_group() -> None:
    """Several are told apart by their group's name."""
    (point,) = points_of([StepSignals(1, 0.0, learning_rates={"a": 0.1, "b": 0.2})], EMPTY)

    assert point.values == {"learning_rate/a": 0.1, "learning_rate/b": 0.2}


def test_averages_are_with_the_last_step() -> None:
    """They are of the moment, and the steps before had others."""
    snapshot = EMPTY._replace(loss_ema=2.0)

    points = points_of([StepSignals(1, 0.0, loss=1.0), StepSignals(2, 0.0, loss=3.0)], snapshot)

    assert [dict(point.values) for point in points] == [{"loss": 1.0}, {"loss": 3.0, "loss_ema": 2}]
    assert points_of([], snapshot) == []
