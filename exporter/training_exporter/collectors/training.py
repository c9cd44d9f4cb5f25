# SPDX-License-Identifier: Apache-2.0
"""Renders the last snapshot of the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import Metric as Family
from prometheus_client.registry import Collector

from training_exporter import catalog
from training_exporter.catalog import (
    BEGUN,
    ENDED,
    NON_FINITE_SOURCES,
    RUN_STATES,
    STEP_DURATION_BUCKETS,
)
from training_exporter.collectors.families import Families, empty_family
from training_exporter.flops import utilisation
from training_exporter.signals import StepSignals
from training_exporter.snapshot import Snapshot
from training_exporter.status import RunStatus


class TrainingCollector(Collector):
    """Metrics of the run itself. Reads two references and touches nothing else.

    Args:
        status: returns the run's status.
        snapshot: returns the state after the last step.
    """

    def __init__(self, status: Callable[[], RunStatus], snapshot: Callable[[], Snapshot]) -> None:
        self._status = status
        self._snapshot = snapshot

    def describe(self) -> Iterator[Family]:
        return map(empty_family, catalog.RUN_METRICS)

    def collect(self) -> Iterator[Family]:
        status, snapshot = self._status(), self._snapshot()
        build = Families(status.labels)
        yield from _run(build, status, snapshot)
        if snapshot.signals is not None:
            yield from _last_step(build, snapshot.signals)
        yield from _averages(build, snapshot)
        yield from _effort(build, status, snapshot)
        yield from _totals(build, status, snapshot)
        yield from _evaluations(build, status, snapshot)
        yield from _anomalies(build, snapshot)


def _run(build: Families, status: RunStatus, snapshot: Snapshot) -> Iterator[Family]:
    info = {name: status.info.get(name, "") for name in catalog.RUN_INFO.labels}
    yield from build.one(catalog.RUN_INFO, 1.0, **info)
    states = {state: float(state == status.state) for state in RUN_STATES}
    yield from build.by_label(catalog.RUN_STATE, states)
    yield from build.one(catalog.ETA, snapshot.eta_seconds)
    last_step = snapshot.signals.timestamp if snapshot.signals else None
    yield from build.one(catalog.LAST_PROGRESS_TIMESTAMP, status.last_progress(last_step))
    if status.nan_filter is not None:
        yield from build.one(catalog.NAN_FILTER, float(status.nan_filter))


def _last_step(build: Families, signals: StepSignals) -> Iterator[Family]:
    yield from build.one(catalog.STEP, signals.step)
    yield from build.one(catalog.EPOCH, signals.epoch)
    yield from build.one(catalog.MAX_STEPS, signals.max_steps)
    yield from build.one(catalog.LAST_STEP_TIMESTAMP, signals.timestamp)
    yield from build.one(catalog.TRAINING_LOSS, signals.loss)
    yield from build.one(catalog.GRADIENT_NORM, signals.grad_norm)
    yield from build.one(catalog.GRAD_CLIP_THRESHOLD, signals.clip_threshold)
    yield from build.by_label(catalog.LEARNING_RATE, signals.learning_rates)
    yield from build.one(catalog.LOSS_SCALE, signals.loss_scale)


def _averages(build: Families, snapshot: Snapshot) -> Iterator[Family]:
    yield from build.one(catalog.LOSS_EMA, snapshot.loss_ema)
    yield from build.one(catalog.GRAD_NORM_EMA, snapshot.grad_norm_ema)
    yield from build.one(catalog.GRAD_CLIP_RATIO, snapshot.clip_ratio)
    yield from build.one(catalog.TOKENS_PER_SECOND, snapshot.tokens_per_second)
    yield from build.one(catalog.SAMPLES_PER_SECOND, snapshot.samples_per_second)


def _effort(build: Families, status: RunStatus, snapshot: Snapshot) -> Iterator[Family]:
    flops = snapshot.flops_per_second
    yield from build.one(catalog.PADDING_RATIO, snapshot.padding_ratio)
    yield from build.one(catalog.MODEL_FLOPS_PER_SECOND, flops)
    yield from build.one(catalog.MFU, utilisation(flops, status.peak_flops))
    yield from build.one(catalog.POSITIONS, snapshot.totals.positions)
    yield from build.one(catalog.MODEL_FLOPS, snapshot.totals.flops)
    yield from build.by_label(catalog.COMPUTE, status.compute)
    if status.forward is not None:
        passes = {BEGUN: status.forward.begun, ENDED: status.forward.ended}
        yield from build.by_label(catalog.FORWARD_PASSES, passes)
        yield from build.one(catalog.FORWARD_SECONDS, status.forward.seconds)


def _totals(build: Families, status: RunStatus, snapshot: Snapshot) -> Iterator[Family]:
    totals = snapshot.totals
    yield from build.one(catalog.STEPS, totals.steps)
    yield from build.one(catalog.TOKENS, totals.tokens)
    yield from build.one(catalog.SAMPLES, totals.samples)
    yield from build.one(catalog.RUN_STEPS, snapshot.run.steps)
    yield from build.one(catalog.RUN_TOKENS, snapshot.run.tokens)
    yield from build.one(catalog.RUN_SAMPLES, snapshot.run.samples)
    yield from build.one(catalog.RESTARTS, status.restarts)
    yield from build.one(catalog.CLIPPED_STEPS, totals.clipped_steps)
    yield from build.one(catalog.SKIPPED_STEPS, totals.skipped_steps)
    non_finite = {
        catalog.LOSS: totals.non_finite_losses,
        catalog.GRAD_NORM: totals.non_finite_grad_norms,
    }
    yield from build.by_label(catalog.NON_FINITE_STEPS, non_finite)
    streaks = {signal: state.streak for signal, state in snapshot.non_finite.items()}
    yield from build.by_label(catalog.NON_FINITE_STREAK, streaks)
    last = {signal: state.timestamp for signal, state in snapshot.non_finite.items()}
    yield from build.by_label(catalog.LAST_NON_FINITE_TIMESTAMP, last)
    yield from build.one(catalog.NON_FINITE_REPORTS, status.reports)
    if status.report is not None:
        sources = {name: float(name == status.report.source) for name in NON_FINITE_SOURCES}
        yield from build.by_label(catalog.NON_FINITE_SOURCE, sources)
    yield from build.histogram(
        catalog.STEP_DURATION,
        STEP_DURATION_BUCKETS,
        snapshot.step_buckets,
        totals.step_seconds,
    )
    yield from build.one(catalog.DATA_WAIT, totals.data_wait_seconds)
    yield from build.by_label(catalog.PAUSE, status.pauses)


def _evaluations(build: Families, status: RunStatus, snapshot: Snapshot) -> Iterator[Family]:
    evaluations = snapshot.evaluations
    losses = {name: evaluation.loss for name, evaluation in evaluations.items()}
    yield from build.by_label(catalog.EVAL_LOSS, losses)
    yield from build.several(
        catalog.EVAL_METRIC,
        [
            ((name, metric), value)
            for name, evaluation in evaluations.items()
            for metric, value in evaluation.metrics.items()
        ],
    )
    yield from build.by_label(catalog.LOGGED_VALUE, status.logged)


def _anomalies(build: Families, snapshot: Snapshot) -> Iterator[Family]:
    by_kind = {anomaly.kind: anomaly for anomaly in snapshot.anomalies}
    columns = (
        (catalog.ANOMALIES, "total"),
        (catalog.ANOMALY_ACTIVE, "active"),
        (catalog.ANOMALY_LAST_STEP, "last_step"),
        (catalog.ANOMALY_LAST_TIMESTAMP, "last_timestamp"),
        (catalog.ANOMALY_LAST_VALUE, "last_value"),
        (catalog.ANOMALY_LAST_THRESHOLD, "last_threshold"),
        (catalog.DETECTOR_READY, "ready"),
    )
    for metric, field in columns:
        values = {kind: getattr(anomaly, field) for kind, anomaly in by_kind.items()}
        yield from build.by_label(metric, values)
