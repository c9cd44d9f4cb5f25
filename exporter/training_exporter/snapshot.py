# SPDX-License-Identifier: Apache-2.0
"""The state of a run after one step, as everything that shows it sees it."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite, isnan
from types import MappingProxyType
from typing import NamedTuple

from training_exporter.catalog import ANOMALY_KINDS
from training_exporter.history import CurveHistory
from training_exporter.signals import Evaluation, StepSignals
from training_exporter.timing.eta import Rhythm, Schedule, eta


def meaning(kind: str) -> str:
    """What a kind of anomaly means. A user's own detector may have a kind of its own."""
    return ANOMALY_KINDS.get(kind, "found by a detector of your own")


class Anomaly(NamedTuple):
    """The beginning of an anomaly."""

    kind: str
    step: int
    timestamp: float
    value: float
    threshold: float

    @property
    def passed_threshold(self) -> bool:
        """Whether there is a threshold between what is usual and the value. A NaN passes none, and
        a learning rate that stays at 0 is an anomaly for how long it does."""
        return isfinite(self.threshold) and not isnan(self.value) and self.threshold != self.value

    @property
    def in_words(self) -> str:
        """What it means, and the two numbers that say so, where there are such."""
        if not self.passed_threshold:
            return meaning(self.kind)
        numbers = f"value {self.value:.6g}, threshold {self.threshold:.6g}"
        return f"{meaning(self.kind)} ({numbers})"


class AnomalyStatus(NamedTuple):
    """What a detector has found so far. The last four are None until it has found something."""

    kind: str
    ready: bool
    active: bool
    total: int
    last_step: int | None
    last_timestamp: float | None
    last_value: float | None
    last_threshold: float | None


class Totals(NamedTuple):
    """Sums since the start of the run; floats, because counters are."""

    steps: float = 0.0
    tokens: float = 0.0
    samples: float = 0.0
    data_wait_seconds: float = 0.0
    clipped_steps: float = 0.0
    skipped_steps: float = 0.0
    non_finite_losses: float = 0.0
    non_finite_grad_norms: float = 0.0
    step_seconds: float = 0.0
    positions: float = 0.0
    padding: float = 0.0
    flops: float = 0.0


class RunTotals(NamedTuple):
    """What went into the present weights, in this process and those before it; None when that is
    not known, as after a resume from a checkpoint that says nothing of it."""

    steps: float | None = 0.0
    tokens: float | None = 0.0
    samples: float | None = 0.0

    def plus(self, steps: float, tokens: float, samples: float) -> RunTotals:
        """The same after some more steps."""
        return RunTotals(
            None if self.steps is None else self.steps + steps,
            None if self.tokens is None else self.tokens + tokens,
            None if self.samples is None else self.samples + samples,
        )


class Best(NamedTuple):
    """The lowest loss of a step so far, and the step."""

    loss: float
    step: int


class NonFinite(NamedTuple):
    """How a signal is doing that may be NaN or infinite.

    Attributes:
        streak: steps in a row, up to the last one, on which it was.
        timestamp: Unix time of the last step on which it was, None when there was none.
    """

    streak: float = 0.0
    timestamp: float | None = None


class Snapshot(NamedTuple):
    """Everything known about the run after one step. Whoever is handed one does not change it.

    Attributes:
        signals: the last step, None before the first.
        loss_ema, grad_norm_ema: averages of the finite values, None before the first of them.
        totals: sums since the start of the process.
        since: the totals some steps ago; the difference to `totals` gives the recent rates.
        step_buckets: number of steps by duration, one more than STEP_DURATION_BUCKETS has bounds.
        anomalies: one status per detector.
        recent: the last anomalies, oldest first.
        evaluations: the last evaluation of each data set.
        non_finite: by signal, one of catalog.WATCHED_SIGNALS.
        pauses: how often and how long the steps are interrupted, by catalog.PAUSES.
        schedules: when the trainer means to interrupt them, where it says so.
        run: what went into the present weights.
        best: the lowest finite loss of a step, None before there was one.
    """

    signals: StepSignals | None
    loss_ema: float | None
    grad_norm_ema: float | None
    totals: Totals
    since: Totals
    step_buckets: tuple[int, ...]
    anomalies: tuple[AnomalyStatus, ...]
    recent: tuple[Anomaly, ...]
    evaluations: Mapping[str, Evaluation]
    history: CurveHistory
    non_finite: Mapping[str, NonFinite] = MappingProxyType({})
    pauses: Mapping[str, Rhythm] = MappingProxyType({})
    schedules: Mapping[str, Schedule] = MappingProxyType({})
    run: RunTotals = RunTotals()
    best: Best | None = None

    @property
    def pace_seconds(self) -> float | None:
        """Recent wall time from step to step, pauses apart."""
        return _ratio(self._recent_seconds, self.totals.steps - self.since.steps)

    @property
    def tokens_per_second(self) -> float | None:
        """Recent throughput of this process, None when tokens are not counted."""
        return _ratio(self.totals.tokens - self.since.tokens, self._recent_seconds)

    @property
    def samples_per_second(self) -> float | None:
        """Recent throughput of this process, None when rows are not counted."""
        return _ratio(self.totals.samples - self.since.samples, self._recent_seconds)

    @property
    def flops_per_second(self) -> float | None:
        """Recent model FLOP/s of this process, None when they are not counted."""
        return _ratio(self.totals.flops - self.since.flops, self._recent_seconds)

    @property
    def padding_ratio(self) -> float | None:
        """Recent share of padding among the positions, None where it is not told apart."""
        positions = self.totals.positions - self.since.positions
        return (self.totals.padding - self.since.padding) / positions if positions > 0 else None

    @property
    def clip_ratio(self) -> float | None:
        """Share of recent steps that were clipped, None where no threshold is known."""
        if self.signals is None or self.signals.clip_threshold is None:
            return None
        clipped = self.totals.clipped_steps - self.since.clipped_steps
        return clipped / max(1, self.totals.steps - self.since.steps)

    @property
    def eta_seconds(self) -> float | None:
        """Time to the planned last step at the present pace, and to the end of the pauses that are
        due until then."""
        if self.signals is None:
            return None
        step, max_steps = self.signals.step, self.signals.max_steps
        return eta(step, max_steps, self.pace_seconds, self.pauses, self.schedules)

    @property
    def _recent_seconds(self) -> float:
        now, then = self.totals, self.since
        return (now.step_seconds + now.data_wait_seconds) - (
            then.step_seconds + then.data_wait_seconds
        )


def _ratio(amount: float, per: float) -> float | None:
    return amount / per if amount > 0 and per > 0 else None
