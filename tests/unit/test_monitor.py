# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from training_exporter.catalog import RESTART
from training_exporter.detectors import Restart as RestartDetector
from training_exporter.detectors.base import HEALTHY, WARMING_UP, Finding, Verdict
from training_exporter.monitor import MAX_DATASETS, RECENT_STEPS, TrainingMonitor
from training_exporter.panel import OF_THE_PROCESS, RECENT_ANOMALIES, DetectorError
from training_exporter.signals import Evaluation, StepSignals
from training_exporter.timing.eta import Schedule
from training_exporter.track import CALM_STEPS

NAN = float("nan")
INF = float("inf")


class Scripted:
    """A detector whose verdict is a function of the step number."""

    def __init__(self, verdict: Callable[[int], Verdict], kind: str = "scripted") -> None:
        self.kind = kind
        self._verdict = verdict
        self.loaded: list[Mapping[str, Any]] = []

    def observe(self, signals: StepSignals) -> Verdict:
        return self._verdict(signals.step)

    def state_dict(self) -> dict[str, Any]:
        return {"learnt": 42}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.loaded.append(state)


class JudgesEvaluations(Scripted):
    def observe_evaluation(self, evaluation: Evaluation) -> Verdict:
        return Finding(evaluation.loss or 0.0, 1.0) if (evaluation.loss or 0) > 1 else HEALTHY


def bad_at(*steps: int) -> Callable[[int], Verdict]:
    return lambda step: Finding(step * 10.0, 5.0) if step in steps else HEALTHY


def run(monitor: TrainingMonitor, steps: range, **fields: Any) -> None:
    for step in steps:
        monitor.observe(StepSignals(step, 1000.0 + step, **fields))


def test_ema_is_bias_corrected() -> None:
    """The first average is the first value, the second their weighted mean, as Adam has it."""
    monitor = TrainingMonitor([], ema_beta=0.9)

    monitor.observe(StepSignals(1, 1.0, loss=4.0, grad_norm=2.0))
    first = monitor.snapshot
    monitor.observe(StepSignals(2, 2.0, loss=2.0, grad_norm=4.0))
    second = monitor.snapshot

    assert first.loss_ema == pytest.approx(4.0)
    assert second.loss_ema == pytest.approx((0.9 * 0.1 * 4 + 0.1 * 2) / (1 - 0.9**2))
    assert second.grad_norm_ema == pytest.approx((0.9 * 0.1 * 2 + 0.1 * 4) / (1 - 0.9**2))


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_non_finite_is_shown_and_counted_but_never_averaged(bad: float) -> None:
    """A NaN or Inf stays in the snapshot as it is, is counted, and leaves the averages alone."""
    monitor = TrainingMonitor([])
    run(monitor, range(1, 4), loss=3.0, grad_norm=1.0)

    monitor.observe(StepSignals(4, 4.0, loss=bad, grad_norm=bad))
    snapshot = monitor.snapshot

    assert str(snapshot.signals.loss) == str(bad)
    assert snapshot.totals.non_finite_losses == 1
    assert snapshot.totals.non_finite_grad_norms == 1
    assert snapshot.loss_ema == pytest.approx(3.0)
    assert snapshot.grad_norm_ema == pytest.approx(1.0)


def test_unknown_values_stay_unknown() -> None:
    """A step of which nothing is known moves the step count and nothing else."""
    monitor = TrainingMonitor([])

    monitor.observe(StepSignals(1, 1.0))
    snapshot = monitor.snapshot

    assert snapshot.totals.steps == 1
    assert snapshot.loss_ema is None
    assert snapshot.clip_ratio is None
    assert snapshot.tokens_per_second is None
    assert snapshot.eta_seconds is None
    assert sum(snapshot.step_buckets) == 0


def test_totals_add_up() -> None:
    """Tokens, rows, waiting, clipped and skipped steps are summed over the run."""
    monitor = TrainingMonitor([])
    fields = {"tokens": 100.0, "samples": 4.0, "step_seconds": 0.5, "data_wait_seconds": 0.1}

    run(monitor, range(1, 5), grad_norm=2.0, clip_threshold=1.0, **fields)
    run(monitor, range(5, 7), grad_norm=0.5, clip_threshold=1.0, skipped=True, **fields)
    totals = monitor.snapshot.totals

    assert totals.tokens == 600
    assert totals.samples == 24
    assert totals.data_wait_seconds == pytest.approx(0.6)
    assert totals.step_seconds == pytest.approx(3.0)
    assert totals.clipped_steps == 4
    assert totals.skipped_steps == 2


def test_falling_loss_scale_is_a_skipped_step() -> None:
    """A fused optimiser says nothing of the step it skipped, but the scale falls."""
    monitor = TrainingMonitor([])
    for step, scale in enumerate([1024.0, 1024.0, 512.0, 512.0, 1024.0], 1):
        monitor.observe(StepSignals(step, 0.0, loss_scale=scale, skipped=False))

    assert monitor.snapshot.totals.skipped_steps == 1


def test_rates_follow_the_recent_steps() -> None:
    """Throughput, pace and clip ratio forget what is more than two windows ago."""
    monitor = TrainingMonitor([])
    run(
        monitor, range(1, 200), tokens=100.0, samples=2.0, step_seconds=1.0, data_wait_seconds=0.0,
        grad_norm=1.0, clip_threshold=5.0, max_steps=1000, positions=100.0, flops=6e9,
    )  # fmt: skip
    slow = range(200, 200 + 2 * RECENT_STEPS)
    run(
        monitor, slow, tokens=100.0, samples=2.0, step_seconds=3.0, data_wait_seconds=1.0,
        grad_norm=9.0, clip_threshold=5.0, max_steps=1000, positions=125.0, flops=6e9,
    )  # fmt: skip
    snapshot = monitor.snapshot

    assert snapshot.tokens_per_second == pytest.approx(25.0)
    assert snapshot.samples_per_second == pytest.approx(0.5)
    assert snapshot.pace_seconds == pytest.approx(4.0)
    assert snapshot.clip_ratio == 1.0
    assert snapshot.flops_per_second == pytest.approx(1.5e9)
    assert snapshot.padding_ratio == pytest.approx(0.2)
    assert snapshot.eta_seconds == pytest.approx((1000 - slow[-1]) * 4.0)


def test_pauses_to_come_are_in_the_time_left() -> None:
    """As the trainer plans them, else as they were seen; a snapshot taken before stays as it is."""
    monitor = TrainingMonitor([])
    run(monitor, range(1, 41), step_seconds=1.0, data_wait_seconds=0.0, max_steps=100)
    before = monitor.snapshot

    for step in (20, 40):
        monitor.observe_pause("evaluation", step, 10.0)
    monitor.observe_pause("saving", 40, 5.0)
    assert before.eta_seconds == 60.0
    assert monitor.snapshot.eta_seconds == 60.0 + 3 * 10.0

    monitor.plan({"saving": Schedule(40, at_end=True), "evaluation": Schedule(60)})
    assert monitor.snapshot.eta_seconds == 60.0 + 1 * 10.0 + 2 * 5.0


def test_an_anomaly_that_goes_on_counts_once() -> None:
    """Findings less than CALM_STEPS apart are one anomaly, active until CALM_STEPS without one."""
    monitor = TrainingMonitor([Scripted(bad_at(5, 6, 12))])

    run(monitor, range(1, 12 + CALM_STEPS))
    during = monitor.snapshot.anomalies[0]
    run(monitor, range(12 + CALM_STEPS, 13 + CALM_STEPS))
    after = monitor.snapshot.anomalies[0]

    assert (during.total, during.active) == (1, True)
    assert (after.total, after.active) == (1, False)
    assert (after.last_step, after.last_value, after.last_threshold) == (12, 120.0, 5.0)
    assert after.last_timestamp == 1012.0


def test_a_later_anomaly_counts_again() -> None:
    """After the calm the next finding is a new anomaly, and both are among the recent ones."""
    monitor = TrainingMonitor([Scripted(bad_at(5, 40))])

    run(monitor, range(1, 45))

    assert monitor.snapshot.anomalies[0].total == 2
    assert [anomaly.step for anomaly in monitor.snapshot.recent] == [5, 40]


def test_ready_follows_the_verdict() -> None:
    """A detector is ready from its first verdict that is not "warming up"."""
    monitor = TrainingMonitor([Scripted(lambda step: HEALTHY if step > 3 else WARMING_UP)])

    run(monitor, range(1, 4))
    before = monitor.snapshot.anomalies[0].ready
    run(monitor, range(4, 5))

    assert not before
    assert monitor.snapshot.anomalies[0].ready


def test_a_restart_makes_the_others_forget() -> None:
    """A restart resets averages and detectors before they see the step, and keeps the counts."""
    other = Scripted(bad_at(5))
    monitor = TrainingMonitor([other, Scripted(bad_at(8), kind=RESTART)])

    run(monitor, range(1, 8), loss=2.0)
    monitor.observe(StepSignals(8, 8.0, loss=9.0))
    restart, scripted = monitor.snapshot.anomalies

    assert other.loaded == [{}]
    assert monitor.snapshot.loss_ema == pytest.approx(9.0)
    assert (restart.kind, restart.total) == (RESTART, 1)
    assert (scripted.total, scripted.active) == (1, False)


def test_a_restart_counts_once() -> None:
    """Though an evaluation comes right after its first step."""
    monitor = TrainingMonitor([RestartDetector()])
    for step in (1, 2, 3, 1):
        monitor.observe(StepSignals(step, float(step), loss=2.0))
    monitor.observe_evaluation(Evaluation(1, 5.0, "eval", 0.5))

    assert monitor.snapshot.anomalies[0].total == 1


def test_a_detector_that_raises_is_retired_and_the_rest_goes_on() -> None:
    """The error comes out once, after the snapshot was published; the others keep judging."""

    def explode(step: int) -> Verdict:
        raise ZeroDivisionError(step)

    good = Scripted(bad_at(2))
    monitor = TrainingMonitor([Scripted(explode, kind="bad"), good])

    with pytest.raises(DetectorError, match="bad") as caught:
        monitor.observe(StepSignals(1, 1.0, loss=3.0))
    monitor.observe(StepSignals(2, 2.0, loss=3.0))

    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert monitor.snapshot.totals.steps == 2
    statuses = [(status.kind, status.total, status.ready) for status in monitor.snapshot.anomalies]
    assert statuses == [("bad", 0, False), ("scripted", 1, True)]


def test_evaluations_are_judged_and_kept_by_data_set() -> None:
    """The last evaluation of each data set is kept, a bounded number of them, and judged."""
    monitor = TrainingMonitor([JudgesEvaluations(lambda step: HEALTHY)])

    for index in range(MAX_DATASETS + 3):
        monitor.observe_evaluation(Evaluation(1, 1.0, f"set {index}", 0.5))
    monitor.observe_evaluation(Evaluation(2, 2.0, "set 5", 1.5))

    assert len(monitor.snapshot.evaluations) == MAX_DATASETS
    assert monitor.snapshot.evaluations["set 5"].loss == 1.5
    assert monitor.snapshot.anomalies[0].total == 1


def test_recent_anomalies_are_bounded() -> None:
    """Only the last few anomalies are kept one by one; all of them are counted."""
    gap = CALM_STEPS + 1
    monitor = TrainingMonitor([Scripted(bad_at(*range(gap, 51 * gap, gap)))])

    run(monitor, range(1, gap * 50 + 1))

    assert len(monitor.snapshot.recent) == RECENT_ANOMALIES
    assert monitor.snapshot.anomalies[0].total == 50


def test_two_detectors_of_a_kind_are_refused() -> None:
    """Their series could not be told apart."""
    with pytest.raises(ValueError, match="at most one detector of a kind"):
        TrainingMonitor([Scripted(bad_at()), Scripted(bad_at())])


def test_state_survives_json() -> None:
    """A monitor that takes over levels and counts goes on as if there had been no seam."""
    one = TrainingMonitor([Scripted(bad_at(5))])
    run(one, range(1, 50), loss=2.0, grad_norm=1.0, tokens=10.0, step_seconds=0.2)

    levels, counts = json.loads(json.dumps([one.levels(), one.counts()]))
    other = TrainingMonitor([Scripted(bad_at(5))])
    other.load_levels(levels)
    other.load_counts(counts)
    for monitor in (one, other):
        run(monitor, range(50, 150), loss=3.0, grad_norm=2.0, tokens=10.0, step_seconds=0.2)

    assert other.snapshot.loss_ema == one.snapshot.loss_ema
    assert other.snapshot.totals == one.snapshot.totals
    assert other.snapshot.step_buckets == one.snapshot.step_buckets
    assert other.snapshot.anomalies == one.snapshot.anomalies
    assert other.snapshot.history.points() == one.snapshot.history.points()
    assert other.snapshot.run == one.snapshot.run == (149.0, 1490.0, 0.0)


def test_levels_go_back_and_counts_go_on() -> None:
    """A run that goes back to a checkpoint has lost what it learnt since, and has done it yet."""
    monitor = TrainingMonitor([Scripted(bad_at(3, 18))])
    run(monitor, range(1, 16), loss=2.0, tokens=10.0)
    saved = monitor.levels()
    run(monitor, range(16, 21), loss=100.0, tokens=10.0)

    monitor.load_levels(saved)

    found = monitor.snapshot.anomalies[0]
    assert monitor.snapshot.loss_ema == pytest.approx(2.0)
    assert monitor.snapshot.run == (15.0, 150.0, 0.0)
    assert monitor.snapshot.history.points()[-1].step == 15
    assert (found.active, found.total, found.last_step) == (False, 2, 18)
    assert (monitor.snapshot.totals.steps, monitor.snapshot.totals.tokens) == (20.0, 200.0)


def test_counts_leave_levels_alone() -> None:
    """Whoever counts on from an earlier process has other weights all the same."""
    earlier = TrainingMonitor([Scripted(bad_at(3))])
    run(earlier, range(1, 16), loss=2.0, tokens=10.0)
    monitor = TrainingMonitor([Scripted(bad_at())])
    run(monitor, range(1, 3), loss=5.0)

    monitor.load_counts(earlier.counts())

    assert monitor.snapshot.totals == earlier.snapshot.totals
    assert monitor.snapshot.anomalies[0].total == 1
    assert monitor.snapshot.loss_ema == pytest.approx(5.0)
    assert monitor.snapshot.run == (2.0, 0.0, 0.0)


@pytest.mark.parametrize("kind", sorted(OF_THE_PROCESS))
def test_what_the_machine_did_is_no_level(kind: str) -> None:
    """Its speed and memory say nothing of another process, and do not go back with the weights."""
    monitor = TrainingMonitor([Scripted(bad_at(2), kind)])
    run(monitor, range(1, 3))

    monitor.load_levels(TrainingMonitor([Scripted(bad_at(), kind)]).levels())

    assert monitor.levels()["detectors"] == {}
    assert monitor.snapshot.anomalies[0].active


@pytest.mark.parametrize("state", [{}, {"version": 0}, {"totals": {"steps": 7}, "unknown": [1]}])
def test_a_partial_state_is_taken_as_far_as_it_goes(state: dict[str, Any]) -> None:
    """An older or partial state is no error; what it lacks starts afresh, or is not known."""
    monitor = TrainingMonitor([Scripted(bad_at())])
    run(monitor, range(1, 5), loss=2.0)

    monitor.load_levels(state)
    monitor.load_counts(state)

    assert monitor.snapshot.totals.steps == state.get("totals", {}).get("steps", 0)
    assert monitor.snapshot.loss_ema is None
    assert monitor.snapshot.run == (None, None, None)
