# SPDX-License-Identifier: Apache-2.0
"""Averages, totals and curves of a run: what is added up from its steps and judged by nobody."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import repeat
from math import inf, isfinite
from typing import Any

from training_exporter.catalog import GRAD_NORM, LOSS, STEP_DURATION_BUCKETS
from training_exporter.history import CurveHistory
from training_exporter.signals import StepSignals
from training_exporter.smoothing import Ema
from training_exporter.snapshot import Best, NonFinite, RunTotals, Totals


class Ledger:
    """The books of a run up to some step.

    A ledger that others may read is never changed: `after` gives the books some steps later. So the
    training thread need only note its steps, and whoever reads adds up the last few of them.

    Attributes:
        loss_ema, grad_norm_ema: averages of the finite values.
        totals: sums since the start of the process.
        run: what went into the present weights.
        step_buckets: number of steps by duration, one more than STEP_DURATION_BUCKETS has bounds.
        history: loss and gradient norm over all steps.
        non_finite: by signal, since when and for how long it is not finite.
        best: the lowest loss, and when it was.
    """

    __slots__ = (
        "best", "grad_norm_ema", "history", "loss_ema", "loss_scale", "non_finite", "run",
        "step_buckets", "totals",
    )  # fmt: skip

    def __init__(self, ema_beta: float) -> None:
        self.loss_ema = Ema(ema_beta)
        self.grad_norm_ema = Ema(ema_beta)
        self.totals = Totals()
        self.run = RunTotals()
        self.step_buckets = [0] * (len(STEP_DURATION_BUCKETS) + 1)
        self.history = CurveHistory()
        self.loss_scale: float | None = None
        self.non_finite = {LOSS: NonFinite(), GRAD_NORM: NonFinite()}
        self.best: Best | None = None

    def after(self, steps: Sequence[StepSignals]) -> Ledger:
        """The books after some more steps."""
        later = self._copy()
        later._enter(steps)
        return later

    def after_restart(self) -> Ledger:
        """The books with the levels of loss and gradients forgotten, and the sums kept."""
        later = self._copy()
        later.loss_ema.reset()
        later.grad_norm_ema.reset()
        later.loss_scale = None
        later.non_finite = {
            signal: state._replace(streak=0.0) for signal, state in self.non_finite.items()
        }
        return later

    def levels(self) -> dict[str, Any]:
        """What belongs to the weights and goes back to a checkpoint with them."""
        scale = self.loss_scale
        return {
            "loss_ema": self.loss_ema.state_dict(),
            "grad_norm_ema": self.grad_norm_ema.state_dict(),
            "run": self.run._asdict(),
            "history": self.history.state_dict(),
            "loss_scale": scale if scale is not None and isfinite(scale) else None,
            "streaks": {name: state.streak for name, state in self.non_finite.items()},
            "best": self.best and list(self.best),
        }

    def load_levels(self, state: Mapping[str, Any]) -> None:
        """Take over saved levels. What is missing starts afresh, of totals it is unknown."""
        self.loss_ema.load_state_dict(state.get("loss_ema") or {})
        self.grad_norm_ema.load_state_dict(state.get("grad_norm_ema") or {})
        run = state.get("run") or {}
        self.run = RunTotals(*[_known(run.get(name)) for name in RunTotals._fields])
        self.history.load_state_dict(state.get("history") or {})
        self.loss_scale = _known(state.get("loss_scale"))
        streaks = state.get("streaks") or {}
        self.non_finite = {
            name: before._replace(streak=float(streaks.get(name) or 0.0))
            for name, before in self.non_finite.items()
        }
        best = state.get("best")
        self.best = Best(float(best[0]), int(best[1])) if best else None

    def counts(self) -> dict[str, Any]:
        """What was counted in this process, whatever became of the weights."""
        return {
            "totals": self.totals._asdict(),
            "step_buckets": list(self.step_buckets),
            "non_finite_times": {name: state.timestamp for name, state in self.non_finite.items()},
        }

    def load_counts(self, state: Mapping[str, Any]) -> None:
        """Take over what an earlier process counted. What is missing starts at 0.

        A histogram with other buckets than these cannot go on, so it and its sum start afresh.
        """
        sums = state.get("totals") or {}
        self.totals = Totals(*[float(sums.get(name) or 0.0) for name in Totals._fields])
        buckets = state.get("step_buckets") or []
        if len(buckets) == len(self.step_buckets):
            self.step_buckets = [int(count) for count in buckets]
        else:
            self.step_buckets = [0] * len(self.step_buckets)
            self.totals = self.totals._replace(step_seconds=0.0)
        times = state.get("non_finite_times") or {}
        self.non_finite = {
            name: before._replace(timestamp=_known(times.get(name)))
            for name, before in self.non_finite.items()
        }

    def _copy(self) -> Ledger:
        later = Ledger.__new__(Ledger)
        later.loss_ema = self.loss_ema.copy()
        later.grad_norm_ema = self.grad_norm_ema.copy()
        later.totals = self.totals
        later.run = self.run
        later.step_buckets = self.step_buckets.copy()
        later.history = self.history.copy()
        later.loss_scale = self.loss_scale
        later.non_finite = self.non_finite
        later.best = self.best
        return later

    def _enter(self, steps: Sequence[StepSignals]) -> None:
        """Add up steps column by column, which costs a third of doing it step by step."""
        losses = [step.loss for step in steps if step.loss is not None]
        norms = [step.grad_norm for step in steps if step.grad_norm is not None]
        finite_losses = [x for x in losses if isfinite(x)]
        finite_norms = [x for x in norms if isfinite(x)]
        durations = _amounts([step.step_seconds for step in steps])
        before = self.totals
        self.totals = Totals(
            steps=before.steps + len(steps),
            tokens=before.tokens + sum(_amounts([step.tokens for step in steps])),
            samples=before.samples + sum(_amounts([step.samples for step in steps])),
            data_wait_seconds=before.data_wait_seconds
            + sum(_amounts([step.data_wait_seconds for step in steps])),
            clipped_steps=before.clipped_steps + _clips_in(steps),
            skipped_steps=before.skipped_steps + self._skips_in(steps),
            non_finite_losses=before.non_finite_losses + len(losses) - len(finite_losses),
            non_finite_grad_norms=before.non_finite_grad_norms + len(norms) - len(finite_norms),
            step_seconds=before.step_seconds + sum(durations),
            **_effort(before, steps),
        )
        done = self.totals
        self.run = self.run.plus(
            done.steps - before.steps, done.tokens - before.tokens, done.samples - before.samples
        )
        spoilt = {
            LOSS: len(losses) > len(finite_losses),
            GRAD_NORM: len(norms) > len(finite_norms),
        }
        self.non_finite = {
            signal: _followed(state, steps, signal) if spoilt[signal] or state.streak else state
            for signal, state in self.non_finite.items()
        }
        if finite_losses and (self.best is None or min(finite_losses) < self.best.loss):
            self.best = _best(steps)
        self.loss_ema.update_all(finite_losses)
        self.grad_norm_ema.update_all(finite_norms)
        self.history.add_all(steps)
        for place in map(bisect_left, repeat(STEP_DURATION_BUCKETS), durations):
            self.step_buckets[place] += 1

    def _skips_in(self, steps: Sequence[StepSignals]) -> int:
        """Count skipped steps. A fused optimiser says nothing of them, but then the scale falls."""
        if self.loss_scale is None and not any(s.skipped or s.loss_scale for s in steps):
            return 0  # no mixed precision, no skips: the usual case
        skips = 0
        for step in steps:
            before, self.loss_scale = self.loss_scale, step.loss_scale
            fell = before is not None and self.loss_scale is not None and self.loss_scale < before
            skips += bool(step.skipped or fell)
        return skips


def _followed(state: NonFinite, steps: Sequence[StepSignals], signal: str) -> NonFinite:
    """How a signal is doing after some more steps."""
    streak, timestamp = state
    for step in steps:
        value: float | None = getattr(step, signal)
        if value is None:
            continue
        if isfinite(value):
            streak = 0.0
        else:
            streak, timestamp = streak + 1, step.timestamp
    return NonFinite(streak, timestamp)


def _best(steps: Sequence[StepSignals]) -> Best:
    """The lowest loss of steps of which one at least has a finite one; of equals the first."""
    known = [(s.loss, s.step) for s in steps if s.loss is not None and isfinite(s.loss)]
    return Best(*min(known, key=lambda each: each[0]))


def _known(value: Any) -> float | None:
    return None if value is None else float(value)


def _effort(before: Totals, steps: Sequence[StepSignals]) -> dict[str, float]:
    """The totals of positions, padding and FLOPs after some more steps."""
    known = [
        (step.positions, step.positions - step.tokens)
        for step in steps
        if step.positions is not None and step.tokens is not None
    ]
    return {
        "positions": before.positions + sum(_amounts([positions for positions, _ in known])),
        "padding": before.padding + sum(_amounts([padding for _, padding in known])),
        "flops": before.flops + sum(_amounts([step.flops for step in steps])),
    }


def _amounts(values: list[float | None]) -> list[float]:
    """Those of the values that a sum may take in: a counter never falls, and never is NaN."""
    return [value for value in values if value is not None and 0.0 <= value < inf]


def _clips_in(steps: Sequence[StepSignals]) -> int:
    """Count steps whose finite norm was above their threshold."""
    excesses = [
        step.grad_norm - step.clip_threshold
        for step in steps
        if step.grad_norm is not None and step.clip_threshold is not None
    ]
    return len([excess for excess in excesses if 0.0 < excess < inf])
