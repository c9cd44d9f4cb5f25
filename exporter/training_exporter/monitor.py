# SPDX-License-Identifier: Apache-2.0
"""The judgement of a run: signals in, a frozen snapshot out.

`TrainingMonitor` is pure: no clock, no torch, no Prometheus, no threads. Everything the scrape
thread shows comes from the last `Snapshot`, which the training thread swaps in as one reference.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from typing import Any

from training_exporter.catalog import RESTART, STEP_DURATION_BUCKETS
from training_exporter.detectors.base import (
    WARMING_UP,
    Detector,
    EvaluationDetector,
    Finding,
    Verdict,
)
from training_exporter.history import CurveHistory
from training_exporter.signals import Evaluation, StepSignals
from training_exporter.smoothing import Ema
from training_exporter.snapshot import Anomaly, AnomalyStatus, Snapshot, Totals

CALM_STEPS = 10
"""Steps without a finding after which an anomaly is over; the same gap that labels merge over."""
RECENT_ANOMALIES = 20
RECENT_STEPS = 32
"""Rates are taken over the last 32 to 64 steps: smooth to the eye, quick to show a drop."""
MAX_DATASETS = 32
STATE_VERSION = 1

# Positions in Totals, which is a list while it grows.
_STEPS, _TOKENS, _SAMPLES, _DATA_WAIT, _CLIPPED, _SKIPPED, _BAD_LOSSES, _BAD_NORMS, _SECONDS = (
    range(9)
)

# Building a named tuple from a tuple costs a third of calling its class.
_new = tuple.__new__


class DetectorError(Exception):
    """A detector raised. It is retired, all else of the step was done."""


class _Track:
    """A detector and the story of its findings."""

    __slots__ = ("active", "calm", "count", "detector", "last", "last_step", "observe", "verdict")

    def __init__(self, detector: Detector) -> None:
        self.detector = detector
        self.observe = detector.observe
        self.verdict: Verdict = WARMING_UP
        self.active = False
        self.calm = 0
        self.count = 0
        self.last: Finding | None = None
        self.last_step: int | None = None

    def found(self, finding: Finding, step: int) -> bool:
        """Note a finding; True when it begins a new anomaly."""
        begins = not self.active
        self.count += begins
        self.active, self.calm = True, 0
        self.last, self.last_step = finding, step
        return begins

    def quiet_step(self) -> bool:
        """Note a step on an active anomaly; True when it has been quiet for long enough."""
        if isinstance(self.verdict, Finding):
            return False
        self.calm += 1
        self.active = self.calm < CALM_STEPS
        return not self.active

    def forget_levels(self) -> None:
        """Start judging afresh, and keep the count of what was found."""
        self.detector.load_state_dict({})
        self.verdict, self.active = WARMING_UP, False

    def state_dict(self) -> dict[str, Any]:
        return {
            "detector": self.detector.state_dict(),
            "count": self.count,
            "last_step": self.last_step,
            "last": None if self.last is None else list(self.last),
            "active": self.active,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.detector.load_state_dict(state.get("detector", {}))
        self.count = state.get("count", 0)
        self.last_step = state.get("last_step")
        self.last = Finding(*state["last"]) if state.get("last") else None
        self.active, self.calm = state.get("active", False), 0
        self.verdict = WARMING_UP

    def status(self) -> AnomalyStatus:
        value, threshold = self.last or (None, None)
        ready = self.verdict is not WARMING_UP
        return AnomalyStatus(
            self.detector.kind, ready, self.active, self.count, self.last_step, value, threshold
        )


class TrainingMonitor:
    """Turns the signals of each step into averages, totals and anomalies.

    Args:
        detectors: the detectors to run, at most one of a kind.
        ema_beta: decay of the averages of loss and gradient norm.

    Raises:
        ValueError: two detectors of one kind, or a beta outside 0 <= beta < 1.
    """

    snapshot: Snapshot
    """The state after the last step; replaced as a whole, so that any thread may read it."""

    def __init__(self, detectors: Iterable[Detector], *, ema_beta: float = 0.99) -> None:
        self._tracks = [_Track(detector) for detector in detectors]
        kinds = [track.detector.kind for track in self._tracks]
        if len(set(kinds)) < len(kinds):
            raise ValueError(f"at most one detector of a kind, got {', '.join(sorted(kinds))}")
        # A restart is judged first: it resets all the others before they see the step.
        self._tracks.sort(key=lambda track: track.detector.kind != RESTART)
        self._loss_ema = Ema(ema_beta)
        self._grad_norm_ema = Ema(ema_beta)
        self._totals: list[float] = [*Totals()]
        self._buckets = [0] * (len(STEP_DURATION_BUCKETS) + 1)
        self._settling: list[_Track] = []
        self._recent: tuple[Anomaly, ...] = ()
        self._evaluations: Mapping[str, Evaluation] = {}
        self._history = CurveHistory()
        self._loss_scale: float | None = None
        self._since = self._next_since = Totals()
        self._statuses: tuple[AnomalyStatus, ...] = ()
        self._refresh_statuses()
        self._publish(None)

    def observe(self, signals: StepSignals) -> Snapshot:
        """Take in one step.

        Raises:
            DetectorError: a detector raised. Everything else of the step is done, the snapshot is
                published, and that detector will not run again.
        """
        failure = self._judge(signals)
        self._take_in(signals)
        snapshot = self._publish(signals)
        if failure is not None:
            raise failure
        return snapshot

    def observe_evaluation(self, evaluation: Evaluation) -> Snapshot:
        """Take in one evaluation. Of more than MAX_DATASETS data sets the oldest are forgotten.

        Raises:
            DetectorError: as for `observe`.
        """
        evaluations = {**self._evaluations}
        evaluations.pop(evaluation.dataset, None)
        evaluations[evaluation.dataset] = evaluation
        if len(evaluations) > MAX_DATASETS:
            del evaluations[next(iter(evaluations))]
        self._evaluations = evaluations
        failure = None
        for track in self._tracks:
            if isinstance(track.detector, EvaluationDetector):
                try:
                    verdict = track.detector.observe_evaluation(evaluation)
                except Exception as error:  # raised by the caller, once all else is done
                    failure = self._retire(track, error)
                else:
                    self._note(track, verdict, evaluation.step, evaluation.timestamp)
        self._refresh_statuses()
        snapshot = self._publish(self.snapshot.signals)
        if failure is not None:
            raise failure
        return snapshot

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs to go on without a seam, as values that JSON can hold."""
        return {
            "version": STATE_VERSION,
            "loss_ema": self._loss_ema.state_dict(),
            "grad_norm_ema": self._grad_norm_ema.state_dict(),
            "totals": Totals(*self._totals)._asdict(),
            "step_buckets": list(self._buckets),
            "history": self._history.state_dict(),
            "anomalies": {track.detector.kind: track.state_dict() for track in self._tracks},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved state. What is missing starts afresh, what is unknown is ignored."""
        self._loss_ema.load_state_dict(state.get("loss_ema", {}))
        self._grad_norm_ema.load_state_dict(state.get("grad_norm_ema", {}))
        saved_totals = state.get("totals", {})
        self._totals = [saved_totals.get(name, 0) for name in Totals._fields]
        self._restart_rates()
        buckets = state.get("step_buckets", [])
        if len(buckets) == len(self._buckets):
            self._buckets = list(buckets)
        self._history.load_state_dict(state.get("history", {}))
        saved_anomalies = state.get("anomalies", {})
        for track in self._tracks:
            track.load_state_dict(saved_anomalies.get(track.detector.kind, {}))
        self._settling = [track for track in self._tracks if track.active]
        self._refresh_statuses()
        self._publish(None)

    def _judge(self, signals: StepSignals) -> DetectorError | None:
        failure = None
        changed = False
        for track in self._tracks:
            try:
                verdict = track.observe(signals)
            except Exception as error:  # raised by the caller, once all else is done
                failure = self._retire(track, error)
                continue
            if verdict is not track.verdict:
                changed = True
                self._note(track, verdict, signals.step, signals.timestamp)
        if self._settling:
            changed |= self._settle()
        if changed:
            self._refresh_statuses()
        return failure

    def _note(self, track: _Track, verdict: Verdict, step: int, timestamp: float) -> None:
        track.verdict = verdict
        if not isinstance(verdict, Finding):
            return
        if track.found(verdict, step):
            begun = Anomaly(track.detector.kind, step, timestamp, *verdict)
            self._recent = (*self._recent, begun)[-RECENT_ANOMALIES:]
            self._settling.append(track)
        if track.detector.kind == RESTART:
            self._forget_levels(track)

    def _settle(self) -> bool:
        """Count the quiet steps of active anomalies; True when one of them is over."""
        over = [track for track in self._settling if track.quiet_step()]
        if over:
            self._settling = [track for track in self._settling if track.active]
        return bool(over)

    def _forget_levels(self, restart: _Track) -> None:
        """After a restart the old level of loss and gradients says nothing about the new steps."""
        self._loss_ema.reset()
        self._grad_norm_ema.reset()
        self._restart_rates()
        self._loss_scale = None
        for track in self._tracks:
            if track is not restart:
                track.forget_levels()
        self._settling = [restart]

    def _retire(self, track: _Track, error: Exception) -> DetectorError:
        self._tracks = [other for other in self._tracks if other is not track]
        self._settling = [other for other in self._settling if other is not track]
        self._refresh_statuses()
        failure = DetectorError(f"the detector {track.detector.kind} raised and was retired")
        failure.__cause__ = error
        return failure

    def _refresh_statuses(self) -> None:
        self._statuses = tuple([track.status() for track in self._tracks])

    def _take_in(self, signals: StepSignals) -> None:
        """Update averages and totals. Hot: no calls that can be spared, and locals for what is read
        twice."""
        loss, norm = signals.loss, signals.grad_norm
        totals = self._totals
        totals[_STEPS] += 1
        if loss is not None:
            if loss - loss != 0.0:  # NaN or infinite
                totals[_BAD_LOSSES] += 1
                loss = None
            else:
                self._loss_ema.update(loss)
        if norm is not None:
            if norm - norm != 0.0:
                totals[_BAD_NORMS] += 1
                norm = None
            else:
                self._grad_norm_ema.update(norm)
                if signals.clip_threshold is not None:
                    totals[_CLIPPED] += norm > signals.clip_threshold
        self._history.add(signals.step, loss, norm)
        if signals.skipped or signals.loss_scale is not None:
            self._count_skip(signals.loss_scale, signals.skipped)
        if signals.tokens is not None:
            totals[_TOKENS] += signals.tokens
        if signals.samples is not None:
            totals[_SAMPLES] += signals.samples
        if signals.data_wait_seconds is not None:
            totals[_DATA_WAIT] += signals.data_wait_seconds
        seconds = signals.step_seconds
        if seconds is not None:
            totals[_SECONDS] += seconds
            self._buckets[bisect_left(STEP_DURATION_BUCKETS, seconds)] += 1
        if totals[_STEPS] % RECENT_STEPS == 0:
            self._since, self._next_since = self._next_since, Totals(*totals)

    def _count_skip(self, scale: float | None, skipped: bool | None) -> None:
        """A fused optimiser skips on the device and says nothing, but then the scale falls."""
        before, self._loss_scale = self._loss_scale, scale
        fell = scale is not None and before is not None and scale < before
        self._totals[_SKIPPED] += bool(skipped or fell)

    def _restart_rates(self) -> None:
        self._since = self._next_since = Totals(*self._totals)

    def _publish(self, signals: StepSignals | None) -> Snapshot:
        self.snapshot = snapshot = _new(
            Snapshot,
            (
                signals,
                self._loss_ema.value,
                self._grad_norm_ema.value,
                _new(Totals, self._totals),
                self._since,
                tuple(self._buckets),
                self._statuses,
                self._recent,
                self._evaluations,
                self._history,
            ),
        )
        return snapshot
