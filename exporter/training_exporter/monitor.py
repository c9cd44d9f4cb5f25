# SPDX-License-Identifier: Apache-2.0
"""The judgement of a run: signals in, a frozen snapshot out.

`TrainingMonitor` is pure: no clock, no torch, no Prometheus, no threads. Everything the scrape
thread shows comes from the last `Snapshot`, which the training thread swaps in as one reference.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from training_exporter.catalog import RESTART
from training_exporter.detectors.base import (
    WARMING_UP,
    Detector,
    EvaluationDetector,
    Finding,
    Verdict,
)
from training_exporter.ledger import Ledger
from training_exporter.signals import Evaluation, StepSignals
from training_exporter.snapshot import Anomaly, AnomalyStatus, Snapshot, Totals

CALM_STEPS = 10
"""Steps without a finding after which an anomaly is over; the same gap that labels merge over."""
RECENT_ANOMALIES = 20
RECENT_STEPS = 32
"""By so many, steps are entered into the ledger. Rates are taken over the last 32 to 64 steps:
smooth to the eye, quick to show a drop."""
MAX_DATASETS = 32
STATE_VERSION = 1


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

    The step pays for the detectors, a list entry and a reference swap. What is only added up is
    added up when somebody looks, on his thread, and every RECENT_STEPS steps for good.

    Args:
        detectors: the detectors to run, at most one of a kind.
        ema_beta: decay of the averages of loss and gradient norm.

    Raises:
        ValueError: two detectors of one kind, or a beta outside 0 <= beta < 1.
    """

    recent: tuple[Anomaly, ...]
    """The last anomalies, oldest first; another tuple whenever there is a new one."""

    def __init__(self, detectors: Iterable[Detector], *, ema_beta: float = 0.99) -> None:
        self._tracks = [_Track(detector) for detector in detectors]
        kinds = [track.detector.kind for track in self._tracks]
        if len(set(kinds)) < len(kinds):
            raise ValueError(f"at most one detector of a kind, got {', '.join(sorted(kinds))}")
        # A restart is judged first: it resets all the others before they see the step.
        self._tracks.sort(key=lambda track: track.detector.kind != RESTART)
        self._settling: list[_Track] = []
        self.recent = ()
        self._evaluations: Mapping[str, Evaluation] = {}
        self._ledger = Ledger(ema_beta)
        self._noted: list[StepSignals] = []
        self._since = self._next_since = Totals()
        self._statuses: tuple[AnomalyStatus, ...] = ()
        self._refresh_statuses()
        self._publish(None)

    @property
    def snapshot(self) -> Snapshot:
        """The state after the last step. May be read from any thread."""
        # One reference is read, so all of it belongs together. `noted` only ever grows, and is
        # replaced once its steps are in the ledger: its first `length` steps stay what they were.
        ledger, noted, length, since, anomalies, recent, evaluations, signals = self._published
        now = ledger.after(noted[:length])
        return Snapshot(
            signals,
            now.loss_ema.value,
            now.grad_norm_ema.value,
            now.totals,
            since,
            tuple(now.step_buckets),
            anomalies,
            recent,
            evaluations,
            now.history,
        )

    def observe(self, signals: StepSignals) -> None:
        """Take in one step.

        Raises:
            DetectorError: a detector raised. Everything else of the step is done and published, and
                that detector will not run again.
        """
        failure = self._judge(signals)
        self._noted.append(signals)
        if len(self._noted) >= RECENT_STEPS:
            self._enter_noted()
            self._since, self._next_since = self._next_since, self._ledger.totals
        self._publish(signals)
        if failure is not None:
            raise failure

    def observe_evaluation(self, evaluation: Evaluation) -> None:
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
        failure = self._judge_evaluation(evaluation)
        self._refresh_statuses()
        self._publish(self._published[-1])
        if failure is not None:
            raise failure

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs to go on without a seam, as values that JSON can hold."""
        return {
            "version": STATE_VERSION,
            "anomalies": {track.detector.kind: track.state_dict() for track in self._tracks},
            **self._ledger.after(self._noted).state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved state. What is missing starts afresh, what is unknown is ignored."""
        self._ledger = self._ledger.after(())
        self._ledger.load_state_dict(state)
        self._noted = []
        self._since = self._next_since = self._ledger.totals
        saved = state.get("anomalies", {})
        for track in self._tracks:
            track.load_state_dict(saved.get(track.detector.kind, {}))
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

    def _judge_evaluation(self, evaluation: Evaluation) -> DetectorError | None:
        failure = None
        for track in self._tracks:
            if isinstance(track.detector, EvaluationDetector):
                try:
                    verdict = track.detector.observe_evaluation(evaluation)
                except Exception as error:  # raised by the caller, once all else is done
                    failure = self._retire(track, error)
                else:
                    self._note(track, verdict, evaluation.step, evaluation.timestamp)
        return failure

    def _note(self, track: _Track, verdict: Verdict, step: int, timestamp: float) -> None:
        track.verdict = verdict
        if not isinstance(verdict, Finding):
            return
        if track.found(verdict, step):
            begun = Anomaly(track.detector.kind, step, timestamp, *verdict)
            self.recent = (*self.recent, begun)[-RECENT_ANOMALIES:]
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
        self._enter_noted()
        self._ledger = self._ledger.after_restart()
        self._since = self._next_since = self._ledger.totals
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

    def _enter_noted(self) -> None:
        """Add the noted steps to the ledger for good."""
        self._ledger = self._ledger.after(self._noted)
        self._noted = []

    def _publish(self, signals: StepSignals | None) -> None:
        noted = self._noted
        self._published = (
            self._ledger,
            noted,
            len(noted),
            self._since,
            self._statuses,
            self.recent,
            self._evaluations,
            signals,
        )
