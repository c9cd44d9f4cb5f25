# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
from prometheus_client import CollectorRegistry

from training_exporter import catalog
from training_exporter.collectors.families import Families
from training_exporter.collectors.own import OwnCollector
from training_exporter.collectors.training import TrainingCollector
from training_exporter.detectors import robust_detectors
from training_exporter.monitor import TrainingMonitor
from training_exporter.signals import Evaluation, StepSignals
from training_exporter.status import ExporterHealth, RunStatus

STATUS = RunStatus("night", 3, catalog.RUNNING, {"model": "Llama"}, nan_filter=True)
COMMON = {"run": "night", "rank": "3"}


def registry(monitor: TrainingMonitor, status: RunStatus = STATUS) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(TrainingCollector(lambda: status, lambda: monitor.snapshot))
    return registry


@pytest.fixture
def monitor() -> TrainingMonitor:
    monitor = TrainingMonitor(robust_detectors())
    monitor.observe(
        StepSignals(
            7, 1700.5, loss=2.5, grad_norm=0.5, clip_threshold=1.0,
            learning_rates={"decay": 1e-3, "bias": 2e-3}, loss_scale=1024.0, skipped=False,
            epoch=0.25, max_steps=10, tokens=4096, samples=8, step_seconds=0.3,
            data_wait_seconds=0.1,
        )
    )  # fmt: skip
    return monitor


def test_the_last_step_is_shown_as_it_was(monitor: TrainingMonitor) -> None:
    """Each signal of the step has its series, with run and rank on it."""
    page = registry(monitor)

    expected = {
        "training_step": 7, "training_loss": 2.5, "training_grad_norm": 0.5,
        "training_loss_scale": 1024, "training_epoch": 0.25, "training_max_steps": 10,
        "training_last_step_timestamp_seconds": 1700.5, "training_tokens_total": 4096,
        "training_last_progress_timestamp_seconds": 1700.5,
        "training_samples_total": 8, "training_steps_total": 1,
        "training_data_wait_seconds_total": 0.1, "training_logging_nan_inf_filter": 1,
        "training_grad_clip_threshold": 1.0, "training_grad_clip_ratio": 0.0,
    }  # fmt: skip
    assert {name: page.get_sample_value(name, COMMON) for name in expected} == expected
    rates = {
        group: page.get_sample_value("training_learning_rate", {**COMMON, "group": group})
        for group in ("decay", "bias")
    }
    assert rates == {"decay": 1e-3, "bias": 2e-3}


def test_the_end_of_a_pause_is_progress(monitor: TrainingMonitor) -> None:
    """After a long evaluation the last step is long ago, and yet nothing stands still."""
    page = registry(monitor, STATUS._replace(running_since=2000.0))

    assert page.get_sample_value("training_last_progress_timestamp_seconds", COMMON) == 2000.0
    assert page.get_sample_value("training_last_step_timestamp_seconds", COMMON) == 1700.5


def test_the_histogram_cumulates(monitor: TrainingMonitor) -> None:
    """Buckets count all that is at most their bound, as Prometheus wants it."""
    page = registry(monitor)

    def bucket(bound: str) -> float | None:
        return page.get_sample_value(
            "training_step_duration_seconds_bucket", {**COMMON, "le": bound}
        )

    assert [bucket("0.25"), bucket("0.5"), bucket("+Inf")] == [0, 1, 1]
    assert page.get_sample_value("training_step_duration_seconds_sum", COMMON) == 0.3


def test_nan_is_nan(monitor: TrainingMonitor) -> None:
    """A NaN loss is exported as NaN and counted."""
    monitor.observe(StepSignals(8, 1701.0, loss=math.nan, grad_norm=math.inf))
    page = registry(monitor)

    assert math.isnan(page.get_sample_value("training_loss", COMMON) or 0)
    assert page.get_sample_value("training_grad_norm", COMMON) == math.inf
    counted = page.get_sample_value("training_non_finite_steps_total", {**COMMON, "signal": "loss"})
    assert counted == 1


def test_what_is_unknown_is_absent() -> None:
    """Before the first step there is a state and there are counters at 0, and no made-up values."""
    page = registry(TrainingMonitor(robust_detectors()), RunStatus("night", 3))
    names = {sample.name for family in page.collect() for sample in family.samples}

    assert "training_state" in names
    assert not names & {
        "training_step", "training_loss", "training_grad_norm", "training_loss_ema",
        "training_eta_seconds", "training_tokens_per_second", "training_anomaly_last_step",
        "training_logging_nan_inf_filter", "training_last_step_timestamp_seconds",
    }  # fmt: skip


def test_counters_start_at_zero_for_every_label_value() -> None:
    """So that `increase()` sees the first anomaly."""
    page = registry(TrainingMonitor(robust_detectors()))

    for kind in catalog.ANOMALY_KINDS:
        labels = {**COMMON, "kind": kind}
        assert page.get_sample_value("training_anomalies_total", labels) == 0, kind
    for signal in catalog.WATCHED_SIGNALS:
        labels = {**COMMON, "signal": signal}
        assert page.get_sample_value("training_non_finite_steps_total", labels) == 0
    for activity in catalog.PAUSES:
        labels = {**COMMON, "activity": activity}
        assert page.get_sample_value("training_pause_seconds_total", labels) == 0


def test_exactly_one_state_holds(monitor: TrainingMonitor) -> None:
    """One series per state, of which one is 1."""
    page = registry(monitor)
    values = {
        state: page.get_sample_value("training_state", {**COMMON, "state": state})
        for state in catalog.RUN_STATES
    }

    assert values == {state: float(state == "running") for state in catalog.RUN_STATES}


def test_evaluations_have_their_data_set_as_label(monitor: TrainingMonitor) -> None:
    """Names full of symbols are label values, never parts of a name."""
    monitor.observe_evaluation(Evaluation(7, 1.0, "my/set name", 3.5, {"f1 (macro)": 0.5}))
    page = registry(monitor)
    dataset = {**COMMON, "dataset": "my/set name"}

    assert page.get_sample_value("training_eval_loss", dataset) == 3.5
    assert page.get_sample_value("training_eval_metric", {**dataset, "metric": "f1 (macro)"}) == 0.5


def test_described_families_are_all_that_come(monitor: TrainingMonitor) -> None:
    """`describe` and `collect` agree, so that a clash with a user's own metric is found early."""
    monitor.observe_evaluation(Evaluation(7, 1.0, "eval", 3.5, {"f1": 0.5}))
    status = STATUS._replace(logged={"reward": 1.0})
    collector = TrainingCollector(lambda: status, lambda: monitor.snapshot)

    described = {family.name for family in collector.describe()}
    collected = {family.name for family in collector.collect()}

    assert collected <= described


def test_own_health_is_shown() -> None:
    """Errors, cost and drops of the exporter, from 0 on."""
    health = ExporterHealth()
    health.count_error(catalog.LOG_ERROR)
    page = CollectorRegistry()
    page.register(OwnCollector(lambda: COMMON, health))

    errors = {
        place: page.get_sample_value("training_exporter_errors_total", {**COMMON, "where": place})
        for place in catalog.ERROR_PLACES
    }
    assert errors == {place: float(place == "log") for place in catalog.ERROR_PLACES}
    assert page.get_sample_value("training_exporter_dropped_series_total", COMMON) == 0


def test_labels_are_matched_by_name_and_not_by_order() -> None:
    """Whoever builds a series may give its labels in any order."""
    labels = {"python_version": "3.11", "version": "1.0"}
    (family,) = Families({}).one(catalog.BUILD_INFO, 1.0, **labels)

    assert family.samples[0].labels == labels
