# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from tests.unit.detectors.feed import NAN, feed
from training_exporter.detectors import HEALTHY, WARMING_UP, EvalGap, Finding, Verdict
from training_exporter.detectors.eval_gap import MAX_DATASETS
from training_exporter.signals import Evaluation, StepSignals


def run(
    detector: EvalGap, train: list[float], evals: list[float | None], dataset: str = "eval"
) -> list[Verdict]:
    """Ten steps at each training loss, then one evaluation."""
    verdicts = []
    for loss, result in zip(train, evals, strict=True):
        feed(detector, "loss", [loss] * 10)
        verdicts.append(detector.observe_evaluation(Evaluation(10, 0.0, dataset, result)))
    return verdicts


def test_eval_loss_that_rises_while_train_loss_falls() -> None:
    """Three evaluations in a row above the best one, the training loss below what it was then."""
    verdicts = run(EvalGap(), [3.0, 2.0, 1.5, 1.2, 1.0], [3.0, 2.2, 2.4, 2.6, 2.8])
    assert verdicts == [WARMING_UP] * 3 + [HEALTHY, Finding(2.8, pytest.approx(2.31))]


def test_the_finding_stays_until_the_next_evaluation() -> None:
    """Steps in between are part of the same anomaly; a new best ends it."""
    detector = EvalGap()
    run(detector, [3.0, 2.0, 1.5, 1.2, 1.0], [3.0, 2.2, 2.4, 2.6, 2.8])
    assert isinstance(detector.observe(StepSignals(51, 0.0, loss=1.0)), Finding)
    assert detector.observe(StepSignals(52, 0.0, loss=NAN)) is HEALTHY
    assert run(detector, [1.0], [2.0]) == [HEALTHY]
    assert detector.observe(StepSignals(62, 0.0, loss=1.0)) is HEALTHY


def test_both_rising_is_not_a_gap() -> None:
    """That is for the detectors of the training loss."""
    assert run(EvalGap(), [2.0, 2.1, 2.3, 2.5, 3.0], [2.0, 2.2, 2.4, 2.6, 3.0])[-1] is HEALTHY


def test_noise_of_the_evaluation_is_not_a_gap() -> None:
    """Within five per cent of the best it may move as it likes."""
    assert run(EvalGap(), [2.0 - 0.1 * n for n in range(9)], [2.0, 2.08, 2.05] * 3)[-1] is HEALTHY


def test_each_dataset_by_itself() -> None:
    """One that overfits does not hide behind one that does not."""
    detector = EvalGap()
    for train, bad in zip([3.0, 2.0, 1.5, 1.2, 1.0], [2.0, 2.2, 2.4, 2.6, 2.8], strict=True):
        run(detector, [train], [train], "good")
        verdict = run(detector, [train], [bad], "bad")[-1]
    assert verdict == Finding(2.8, pytest.approx(2.1))


def test_evaluations_without_a_loss_or_a_step_change_nothing() -> None:
    """Nor do more data sets than are followed."""
    detector = EvalGap()
    assert run(detector, [1.0] * 3, [NAN, None, float("inf")]) == [WARMING_UP] * 3
    run(detector, [1.0], [1.0])
    before = detector.state_dict()
    detector.observe_evaluation(Evaluation(40, 0.0, "eval", 9.0))
    assert detector.state_dict() == before
    for number in range(2 * MAX_DATASETS):
        detector.observe_evaluation(Evaluation(40, 0.0, f"set {number}", 1.0))
    assert len(detector.state_dict()["courses"]) == MAX_DATASETS


def test_negative_losses_have_a_margin_too() -> None:
    """The margin is of the magnitude of the best loss."""
    verdicts = run(EvalGap(), [-1.0, -2.0, -3.0, -4.0], [-2.0, -1.99, -1.95, -1.91])
    assert verdicts[-1] is HEALTHY
