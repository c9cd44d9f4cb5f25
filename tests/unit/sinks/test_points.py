# SPDX-License-Identifier: Apache-2.0
"""What there is to plot of a step."""

from __future__ import annotations

from math import isnan, nan

from training_exporter.monitor import TrainingMonitor
from training_exporter.replay.columns import Columns
from training_exporter.signals import Evaluation, StepSignals
from training_exporter.sinks.points import PREFIX, point_of, points_of

EMPTY = TrainingMonitor([]).snapshot
SETS = ("eval", "wiki")


def test_what_is_known_and_nothing_else() -> None:
    """NaN is as it was; what is None is not there."""
    step = StepSignals(
        7, 107.0, loss=nan, learning_rates={"all": 0.1}, tokens=30.0, step_seconds=1.0,
        data_wait_seconds=0.5, clip_threshold=2.0,
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
        "clip_threshold": 2.0,
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


def test_an_evaluation_has_the_names_of_one() -> None:
    """That of the only data set is `eval_loss`, and others have theirs in it; what has no loss has
    none."""
    assert point_of(Evaluation(7, 107.0, "eval", 2.0, {"f1": 0.5})) == (
        7, 107.0, {"eval_f1": 0.5, "eval_loss": 2.0},
    )  # fmt: skip
    assert point_of(Evaluation(7, 107.0, "wiki", None, {"f1": 0.5})).values == {"eval_wiki_f1": 0.5}


def test_replay_knows_what_is_told() -> None:
    """Each signal that `training-exporter replay` judges, and each evaluation, by its name."""
    step = StepSignals(
        1, 1.0, loss=1.0, grad_norm=1.0, clip_threshold=1.0, learning_rates={"all": 1.0},
        loss_scale=1.0, epoch=1.0, step_seconds=1.0, memory_allocated_bytes=1.0,
    )  # fmt: skip
    points = [*points_of([step], EMPTY), *(point_of(Evaluation(1, 1.0, of, 1.0)) for of in SETS)]
    columns = Columns({})
    columns.learn_all([{PREFIX + name: 1.0 for point in points for name in point.values}])

    assert columns.names == {
        name: f"monitor/{name}"
        for name in (
            "loss", "grad_norm", "clip_threshold", "learning_rate", "loss_scale", "epoch",
            "step_seconds", "memory_allocated_bytes",
        )
    }  # fmt: skip
    assert columns.evaluations == {"monitor/eval_loss": "eval", "monitor/eval_wiki_loss": "wiki"}
