# SPDX-License-Identifier: Apache-2.0
"""The summary of a run, from what there was to see of it at its end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final, NamedTuple

from training_exporter.catalog import GRAD_NORM, LOSS, OBSERVE_PHASE, PAUSES, STEP_PHASE
from training_exporter.gpu.readings import AllocatorReading
from training_exporter.snapshot import Best, Snapshot, Totals
from training_exporter.status import RunStatus
from training_exporter.values import json_ready

SCHEMA_VERSION: Final = 1
STEPS: Final = "steps"
DATA_WAIT: Final = "data_wait"
TIMES: Final = (STEPS, DATA_WAIT, *PAUSES)
"""What the time of a run is divided into: training, waiting for data, and the pauses."""


class KindFound(NamedTuple):
    """Anomalies of one kind.

    Attributes:
        kind: one of catalog.ANOMALY_KINDS, or that of a detector of the user's.
        total: how many there were.
        steps: steps at which the last of them began, oldest first; only so many are remembered.
    """

    kind: str
    total: int
    steps: tuple[int, ...]


class RunSummary(NamedTuple):
    """A run at its end. A field is None, and a mapping has no entry, where nothing is known.

    Attributes:
        run, rank, state, failure, reason: as in RunStatus.
        step: number of the last step.
        steps: steps that were taken, in this process and in those before it that it counts on from.
        steps_in_weights: steps that went into the weights, those before a checkpoint among them.
        loss: that of the last step, NaN included.
        loss_ema: average of the finite losses at the end.
        best: the lowest loss of a step.
        eval_loss: by data set, that of its last evaluation.
        eval_metrics: by data set, the other results of its last evaluation.
        tokens, samples: what this process trained on.
        tokens_per_second, samples_per_second: over all the time of training and waiting for data.
        seconds: wall time by what the process did, TIMES.
        compute_seconds: the device's time, by catalog.COMPUTE_PHASES.
        anomalies: kinds of which there was one, in the order of the detectors.
        non_finite_steps: steps whose loss or gradient norm was NaN or infinite, by which of them.
        skipped_steps: steps in which the optimiser left the weights alone.
        clip_ratio: share of the steps that were clipped.
        peak_memory_bytes: most that live tensors held, by CUDA device.
        overhead_seconds: what the exporter took, by catalog.PHASES.
    """

    run: str
    rank: int
    state: str
    failure: str | None = None
    step: int | None = None
    steps: float = 0.0
    loss: float | None = None
    loss_ema: float | None = None
    best: Best | None = None
    eval_loss: Mapping[str, float] = {}
    tokens: float | None = None
    samples: float | None = None
    tokens_per_second: float | None = None
    samples_per_second: float | None = None
    seconds: Mapping[str, float] = {}
    compute_seconds: Mapping[str, float] = {}
    anomalies: tuple[KindFound, ...] = ()
    non_finite_steps: Mapping[str, float] = {}
    skipped_steps: float = 0.0
    clip_ratio: float | None = None
    peak_memory_bytes: Mapping[str, float] = {}
    overhead_seconds: Mapping[str, float] = {}
    reason: str | None = None
    steps_in_weights: float | None = None
    eval_metrics: Mapping[str, Mapping[str, float]] = {}

    @property
    def total_seconds(self) -> float:
        """Wall time of the run, as far as it was spent on TIMES."""
        return sum(self.seconds.values())

    @property
    def overhead_ratio(self) -> float | None:
        """Share of the wall time that the exporter took on the training thread."""
        if not self.total_seconds:
            return None
        on_thread = [self.overhead_seconds.get(phase, 0.0) for phase in (STEP_PHASE, OBSERVE_PHASE)]
        return sum(on_thread) / self.total_seconds


def summarise(
    status: RunStatus,
    snapshot: Snapshot,
    memory: tuple[AllocatorReading, ...] = (),
    overhead: Mapping[str, float] | None = None,
) -> RunSummary:
    """The summary of a run.

    Args:
        status: the run.
        snapshot: the state after its last step.
        memory: torch's allocator at the last step.
        overhead: seconds that the exporter took, by catalog.PHASES.
    """
    totals, signals = snapshot.totals, snapshot.signals
    training = totals.step_seconds + totals.data_wait_seconds
    return RunSummary(
        run=status.run,
        rank=status.rank,
        state=status.state,
        failure=status.failure,
        step=signals.step if signals is not None else None,
        steps=totals.steps,
        loss=signals.loss if signals is not None else None,
        loss_ema=snapshot.loss_ema,
        best=snapshot.best,
        eval_loss={
            name: evaluation.loss
            for name, evaluation in snapshot.evaluations.items()
            if evaluation.loss is not None
        },
        tokens=totals.tokens or None,
        samples=totals.samples or None,
        tokens_per_second=_ratio(totals.tokens, training),
        samples_per_second=_ratio(totals.samples, training),
        seconds=_times(totals, status.pauses),
        compute_seconds={phase: seconds for phase, seconds in status.compute.items() if seconds},
        anomalies=_found(snapshot),
        non_finite_steps=_non_finite(totals),
        skipped_steps=totals.skipped_steps,
        clip_ratio=_clip_ratio(snapshot),
        peak_memory_bytes={
            str(reading.device): reading.allocated_peak_bytes
            for reading in memory
            if reading.allocated_peak_bytes is not None
        },
        overhead_seconds=dict(overhead or {}),
        reason=status.reason if status.failure else None,  # a run may go on after it crashed
        steps_in_weights=snapshot.run.steps,
        eval_metrics={
            name: dict(evaluation.metrics)
            for name, evaluation in snapshot.evaluations.items()
            if evaluation.metrics
        },
    )


def summary_json(summary: RunSummary) -> str:
    """A summary as strict JSON, with a line break at its end."""
    return json.dumps(plain(summary), indent=1, allow_nan=False) + "\n"


def plain(summary: RunSummary) -> dict[str, object]:
    """A summary as values that strict JSON can hold; NaN is the text "NaN"."""
    ready: dict[str, object] = json_ready(summary)
    shares = {"total_seconds": summary.total_seconds, "overhead_ratio": summary.overhead_ratio}
    return {"schema_version": SCHEMA_VERSION, **ready, **json_ready(shares)}


def _times(totals: Totals, pauses: Mapping[str, float]) -> dict[str, float]:
    known = {STEPS: totals.step_seconds, DATA_WAIT: totals.data_wait_seconds, **pauses}
    return {name: seconds for name, seconds in known.items() if seconds}


def _found(snapshot: Snapshot) -> tuple[KindFound, ...]:
    return tuple(
        KindFound(
            status.kind,
            status.total,
            tuple(anomaly.step for anomaly in snapshot.recent if anomaly.kind == status.kind),
        )
        for status in snapshot.anomalies
        if status.total
    )


def _non_finite(totals: Totals) -> dict[str, float]:
    known = {LOSS: totals.non_finite_losses, GRAD_NORM: totals.non_finite_grad_norms}
    return {name: steps for name, steps in known.items() if steps}


def _clip_ratio(snapshot: Snapshot) -> float | None:
    totals, signals = snapshot.totals, snapshot.signals
    clips = totals.clipped_steps or (signals is not None and signals.clip_threshold is not None)
    return totals.clipped_steps / totals.steps if clips and totals.steps else None


def _ratio(amount: float, per: float) -> float | None:
    return amount / per if amount > 0 and per > 0 else None
