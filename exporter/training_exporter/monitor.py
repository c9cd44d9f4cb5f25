# SPDX-License-Identifier: Apache-2.0
"""The judgement of a run: signals in, a frozen snapshot out.

`TrainingMonitor` is pure: no clock, no torch, no Prometheus, no threads. Everything the scrape
thread shows comes from the last `Snapshot`, which the training thread swaps in as one reference.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from numbers import Real
from typing import Any, NoReturn

from training_exporter.catalog import RESTART
from training_exporter.detectors.base import Detector, Finding, Verdict
from training_exporter.ledger import Ledger
from training_exporter.signals import Evaluation, StepSignals
from training_exporter.snapshot import Anomaly, AnomalyStatus, Snapshot, Totals
from training_exporter.timing.eta import Recurrence, Rhythm, Schedule
from training_exporter.track import Track

RECENT_ANOMALIES = 20
RECENT_STEPS = 32
"""By so many, steps are entered into the ledger. Rates are taken over the last 32 to 64 steps:
smooth to the eye, quick to show a drop."""
MAX_DATASETS = 32
NUMERIC_FIELDS = tuple(
    entry.name for entry in fields(StepSignals) if entry.name != "learning_rates"
)
STATE_VERSION = 1


class DetectorError(Exception):
    """A detector raised. It is retired, all else of the step was done.

    Attributes:
        detector: its kind.
    """

    def __init__(self, detector: str) -> None:
        super().__init__(f"the detector {detector} raised and was retired")
        self.detector = detector


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
        self._tracks = [Track(detector) for detector in detectors]
        kinds = [track.kind for track in self._tracks]
        if len(set(kinds)) < len(kinds):
            raise ValueError(f"at most one detector of a kind, got {', '.join(sorted(kinds))}")
        # A restart is judged first: it resets all the others before they see the step.
        self._tracks.sort(key=lambda track: track.kind != RESTART)
        self._settling: list[Track] = []
        self._failure: DetectorError | None = None
        self.recent = ()
        self._evaluations: Mapping[str, Evaluation] = {}
        self._recurrences: dict[str, Recurrence] = {}
        self._pauses: Mapping[str, Rhythm] = {}
        self._schedules: Mapping[str, Schedule] = {}
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
        (
            ledger, noted, length, since, anomalies, recent, evaluations, pauses, schedules,
            signals,
        ) = self._published  # fmt: skip
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
            now.non_finite,
            pauses,
            schedules,
        )

    def observe(self, signals: StepSignals) -> None:
        """Take in one step.

        Raises:
            TypeError: a field is not a number. The step is refused.
            DetectorError: a detector raised. Everything else of the step is done and published, and
                that detector will not run again.
        """
        self._judge(signals)
        self._noted.append(signals)
        if len(self._noted) >= RECENT_STEPS:
            self._enter_noted()
            self._since, self._next_since = self._next_since, self._ledger.totals
        self._publish(signals)
        if self._failure is not None:
            self._raise_failure()

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
        for track in self._tracks:
            self._judge_evaluation(track, evaluation)
        self._refresh_statuses()
        self._publish(self._published[-1])
        if self._failure is not None:
            self._raise_failure()

    def observe_pause(self, activity: str, step: int, seconds: float) -> None:
        """Take in that the steps were interrupted after `step`, for an activity of
        catalog.PAUSES."""
        recurrence = self._recurrences.setdefault(activity, Recurrence())
        self._pauses = {**self._pauses, activity: recurrence.happened(step, seconds)}
        self._publish(self._published[-1])

    def plan(self, schedules: Mapping[str, Schedule]) -> None:
        """Say when the trainer means to interrupt the steps; an activity that is not in it goes on
        as it was seen to."""
        self._schedules = dict(schedules)
        self._publish(self._published[-1])

    def end(self) -> None:
        """The run is over, and what went on in it with it: no anomaly is active any more."""
        for track in self._settling:
            track.active = False
        self._settling = []
        self._refresh_statuses()
        self._publish(self._published[-1])

    def state_dict(self) -> dict[str, Any]:
        """All that detectors, averages and totals need to go on in a resumed run, as values that
        any JSON can hold."""
        return {
            "version": STATE_VERSION,
            "anomalies": {track.kind: track.state_dict() for track in self._tracks},
            **self._ledger.after(self._noted).state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved state. What is missing starts afresh, what is unknown is ignored."""
        ledger = self._ledger.after(())
        ledger.load_state_dict(state)
        self._ledger, self._noted = ledger, []
        self._since = self._next_since = self._ledger.totals
        saved = state.get("anomalies", {})
        for track in self._tracks:
            track.load_state_dict(saved.get(track.kind, {}))
        self._settling = [track for track in self._tracks if track.active]
        self._refresh_statuses()
        self._publish(None)

    def _judge(self, signals: StepSignals) -> None:
        changed = False
        for track in self._tracks:
            try:
                verdict = track.observe(signals)
            except Exception as error:  # raised by observe(), once all else is done
                _require_numbers(signals)  # else it is not the detector's fault
                self._retire(track, error)
                changed = True
                continue
            if verdict is not track.verdict:
                changed = True
                self._note(track, verdict, signals.step, signals.timestamp)
        if self._settling:
            self._settle(signals)
            changed = True
        if changed:
            self._refresh_statuses()

    def _judge_evaluation(self, track: Track, evaluation: Evaluation) -> None:
        try:
            verdict = track.observe_evaluation(evaluation)
        except Exception as error:  # raised by observe_evaluation(), once all else is done
            self._retire(track, error)
        else:
            self._note(track, verdict, evaluation.step, evaluation.timestamp)

    def _note(self, track: Track, verdict: Verdict, step: int, timestamp: float) -> None:
        track.verdict = verdict
        if not isinstance(verdict, Finding):
            return
        if track.found(verdict, step, timestamp):
            begun = Anomaly(track.kind, step, timestamp, *verdict)
            self.recent = (*self.recent, begun)[-RECENT_ANOMALIES:]
        if track.kind == RESTART:
            self._forget_levels(track)
        if track not in self._settling:
            self._settling.append(track)

    def _settle(self, signals: StepSignals) -> None:
        for track in self._settling:
            track.settle(signals.step, signals.timestamp)
        self._settling = [track for track in self._settling if track.active]

    def _forget_levels(self, restart: Track) -> None:
        """After a restart the old level of loss and gradients says nothing about the new steps."""
        self._enter_noted()
        self._ledger = self._ledger.after_restart()
        self._since = self._next_since = self._ledger.totals
        self._settling = []
        for track in self._tracks:
            if track is restart:
                continue
            try:
                track.forget_levels()
            except Exception as error:  # raised by observe(), once all else is done
                self._retire(track, error)

    def _retire(self, track: Track, error: Exception) -> None:
        track.retire()
        self._settling = [other for other in self._settling if other is not track]
        self._failure = DetectorError(track.kind)
        self._failure.__cause__ = error

    def _raise_failure(self) -> NoReturn:
        failure, self._failure = self._failure, None
        assert failure is not None
        raise failure

    def _refresh_statuses(self) -> None:
        self._statuses = tuple([track.status() for track in self._tracks])

    def _enter_noted(self) -> None:
        """Add the noted steps to the ledger for good."""
        noted, self._noted = self._noted, []  # first, or a step that cannot be added stays for ever
        self._ledger = self._ledger.after(noted)

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
            self._pauses,
            self._schedules,
            signals,
        )


def _require_numbers(signals: StepSignals) -> None:
    """Refuse a step of which a field is no number.

    Raises:
        TypeError: naming the field and what it holds.
    """
    for name in NUMERIC_FIELDS:
        value = getattr(signals, name)
        if value is not None and not isinstance(value, Real):
            raise TypeError(f"{name} must be a number or None, got {value!r}")
