# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest

from training_exporter.replay.columns import Columns
from training_exporter.replay.rows import Event, Rows, usual_stride
from training_exporter.replay.text_logs import Record
from training_exporter.replay.trouble import Troubles
from training_exporter.signals import Evaluation, StepSignals


def events(*records: Record, **options: float) -> tuple[list[Event], list[str]]:
    columns, troubles = Columns({}), Troubles()
    columns.learn_all(records)
    return list(Rows(columns, troubles, **options).events(records)), troubles.lines()


def test_a_row_is_a_step() -> None:
    """Texts are numbers too, and NaN stays what it is."""
    record: Record = {"step": "10", "loss": "nan", "grad_norm": 2, "lr": "1e-3", "epoch": 0.5}
    (step,), troubles = events(record, clip_threshold=1.0)

    assert isinstance(step, StepSignals)
    assert step.step == 10
    assert math.isnan(step.loss or 0.0)
    assert (step.grad_norm, step.clip_threshold, step.epoch) == (2.0, 1.0, 0.5)
    assert step.learning_rates == {"0": 1e-3}
    assert troubles == []


def test_a_clip_threshold_that_is_logged() -> None:
    """Goes before the one that the user says, which stands in where a row has none."""
    found, _ = events(
        {"step": 1, "loss": 2.0, "clip_threshold": 0.5}, {"step": 2, "loss": 1.0},
        clip_threshold=1.0,
    )  # fmt: skip

    assert [each.clip_threshold for each in found if isinstance(each, StepSignals)] == [0.5, 1.0]


def test_what_is_logged_one_by_one_is_one_step() -> None:
    """Lightning writes a row for the rate, one for the loss and one for the evaluation."""
    found, _ = events(
        {"step": 1, "lr": 0.1}, {"step": 1, "loss": 2.0}, {"step": 1, "val_loss": 3.0},
        {"step": 2, "loss": 1.0},
    )  # fmt: skip

    first, evaluation, second = found
    assert isinstance(first, StepSignals)
    assert (first.loss, first.learning_rates) == (2.0, {"0": 0.1})
    assert evaluation == Evaluation(1, 0.0, "eval", 3.0)
    assert second.loss == 1.0


def test_steps_that_repeat_or_go_back_are_told() -> None:
    """And are judged as they are."""
    found, troubles = events(
        {"step": 5, "loss": 2.0}, {"step": 5, "loss": 3.0}, {"step": 4, "loss": 1.0}
    )

    assert [event.step for event in found] == [5, 5, 4]
    assert troubles == [
        "1 step that repeats, which `restart` judges, at step 5",
        "1 step that goes back, which `restart` judges, at step 4",
    ]


def test_what_is_no_number_is_absent() -> None:
    """Not zero, and it is told; null and empty are absent anyway."""
    (step,), troubles = events({"step": 1, "loss": 2.0, "grad_norm": "?", "lr": None})

    assert isinstance(step, StepSignals)
    assert (step.grad_norm, step.learning_rates) == (None, {})
    assert troubles == ["1 value that is no number and was left out, at '?'"]


def test_records_without_a_step() -> None:
    """An evaluation belongs to the last step; a loss belongs nowhere."""
    found, troubles = events({"step": 7, "loss": 2.0}, {"eval_loss": 3.0}, {"loss": 1.0})

    assert [event.step for event in found] == [7, 7]
    assert "without a step" in troubles[0]


def test_a_log_without_steps_is_counted() -> None:
    """From 1 on, by the rows that have something to judge."""
    found, _ = events({"loss": 2.0}, {"accuracy": 1.0}, {"loss": 1.0}, {"eval_loss": 1.0})

    assert [event.step for event in found] == [1, 2, 2]


def test_the_usual_stride() -> None:
    """Is not misled by restarts."""
    steps = [10, 20, 5, 2, 12]
    found, _ = events(*({"step": step, "loss": 1.0} for step in steps))

    assert usual_stride(found) == 10
    assert usual_stride(found[:1]) is None


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("-nan(ind)", math.nan), ("nan(0x8000000000000)", math.nan), ("1.#QNAN", math.nan),
        ("-1.#IND00", math.nan), ("1.#INF", math.inf), ("-1.#INF00", -math.inf),
        ("tensor(2.5, device='cuda:0', grad_fn=<NllLossBackward0>)", 2.5), ("tensor([0.5])", 0.5),
        ("tensor(nan)", math.nan),
    ],
)  # fmt: skip
def test_numbers_as_others_write_them(text: str, number: float) -> None:
    """C on Windows, and who logs a tensor and not the number in it."""
    (step,), troubles = events({"step": 1, "loss": text})

    assert isinstance(step, StepSignals)
    assert step.loss == pytest.approx(number, nan_ok=True)
    assert troubles == []


def test_a_null_in_place_of_a_loss_is_told() -> None:
    """JSON has no NaN, and some write null for it."""
    found, troubles = events({"step": 1, "loss": 2.0}, {"step": 2, "loss": None})

    assert [each.step for each in found] == [1]
    assert troubles == ["1 row with null for 'loss' that was left out, at step 2"]


def test_a_date_is_a_time() -> None:
    """UTC where it names no zone."""
    found, troubles = events(
        {"step": 1, "loss": 2.0, "timestamp": "2026-01-31T10:00:01"},
        {"step": 2, "loss": 2.0, "timestamp": "2026-01-31T12:00:01+02:00"},
        {"step": 3, "loss": 2.0, "timestamp": "1769853601"},
    )

    assert [each.timestamp for each in found] == [1769853601.0] * 3
    assert troubles == []


def test_a_step_is_as_old_as_what_was_logged_of_it_first() -> None:
    """An evaluation at the same step took its time."""
    found, _ = events(
        {"step": 1, "loss": 2.0, "timestamp": 100.0},
        {"step": 1, "eval_loss": 3.0, "timestamp": 109.0},
    )

    assert [each.timestamp for each in found] == [100.0, 100.0]


def test_a_step_that_is_no_whole_number_is_told() -> None:
    """And cut, where most are whole."""
    found, troubles = events({"step": 1, "loss": 2.0}, {"step": 2.5, "loss": 2.0})

    assert [each.step for each in found] == [1, 2]
    assert troubles == ["1 step that is no whole number and was cut, at 2.5"]
