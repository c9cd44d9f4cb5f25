# SPDX-License-Identifier: Apache-2.0
"""The judgement of a run: signals in, a frozen snapshot out.

`TrainingMonitor` is pure: no clock, no torch, no Prometheus, no threads. Everything the scrape
thread shows comes from the last `Snapshot`, which the training thread swaps in as one reference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from training_exporter.detectors.base import Detector
from training_exporter.ledger import Ledger
from training_exporter.panel import Panel
from training_exporter.signals import Evaluation, StepSignals
from training_exporter.snapshot import Anomaly, AnomalyStatus, Snapshot, Totals
from training_exporter.timing.eta import Recurrence, Rhythm, Schedule

RECENT_STEPS = 32
"""By so many, steps are entered into the ledger. Rates are taken over the last 32 to 64 steps:
smooth to the eye, quick to show a drop."""
MAX_DATASETS = 32


class TrainingMonitor:
    """Turns the signals of each step into averages, totals and anomalies.

    The step pays for the detectors, a list entry and a reference swap. What is only added up is
    added up when somebody looks, on his thread, and every RECENT_STEPS steps for good.

    Args:
        detectors: the detectors to run, at most one of a kind.
        ema_beta: decay of the averages of loss and gradient norm.

    Attributes:
        before_anomaly: called just before others can see that an anomaly began.

    Raises:
        ValueError: two detectors of one kind, or a beta outside 0 <= beta < 1.
    """

    def __init__(self, detectors: Iterable[Detector], *, ema_beta: float = 0.99) -> None:
        self._panel = Panel(detectors)
        self.before_anomaly: Callable[[], object] | None = None
        self._evaluations: Mapping[str, Evaluation] = {}
        self._recurrences: dict[str, Recurrence] = {}
        self._pauses: Mapping[str, Rhythm] = {}
        self._schedules: Mapping[str, Schedule] = {}
        self._ledger = Ledger(ema_beta)
        self._noted: list[StepSignals] = []
        self._since = self._next_since = Totals()
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
            now.run,
            now.best,
        )

    @property
    def anomalies(self) -> tuple[AnomalyStatus, ...]:
        """Those of the snapshot, for who reads them after every step: nothing is added up."""
        return self._panel.statuses

    @property
    def recent(self) -> tuple[Anomaly, ...]:
        """The last anomalies, oldest first; another tuple whenever there is a new one."""
        return self._panel.recent

    def observe(self, signals: StepSignals) -> None:
        """Take in one step.

        Raises:
            TypeError: a field is not a number. The step is refused.
            DetectorError: a detector raised. Everything else of the step is done and published, and
                that detector will not run again.
        """
        panel = self._panel
        recent = panel.recent
        if panel.judge(signals):
            self._forget_levels()
        self._noted.append(signals)
        if len(self._noted) >= RECENT_STEPS:
            self._enter_noted()
            self._since, self._next_since = self._next_since, self._ledger.totals
        if panel.recent is not recent and self.before_anomaly is not None:
            self.before_anomaly()
        self._publish(signals)
        if panel.failure is not None:
            panel.raise_failure()

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
        panel = self._panel
        recent = panel.recent
        if panel.judge_evaluation(evaluation):
            self._forget_levels()
        if panel.recent is not recent and self.before_anomaly is not None:
            self.before_anomaly()
        self._publish(self._published[-1])
        if panel.failure is not None:
            panel.raise_failure()

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
        self._panel.end()
        self._publish(self._published[-1])

    def levels(self) -> dict[str, Any]:
        """What belongs to the weights and goes back with them: averages, what detectors have
        learnt, curves, and what went into the weights; values that any JSON can hold."""
        return {
            **self._ledger.after(self._noted).levels(),
            "detectors": self._panel.levels(),
        }

    def load_levels(self, state: Mapping[str, Any]) -> None:
        """Go on from saved levels, and count on. What is missing starts afresh or is unknown."""
        self._enter_noted()
        self._ledger = self._ledger.after(())
        self._ledger.load_levels(state)
        self._panel.load_levels(state.get("detectors") or {})
        self._publish(None)

    def counts(self) -> dict[str, Any]:
        """What was counted and found in this process, whatever became of the weights. As values
        that any JSON can hold."""
        return {
            **self._ledger.after(self._noted).counts(),
            "anomalies": self._panel.counts(),
        }

    def load_counts(self, state: Mapping[str, Any]) -> None:
        """Count on from where an earlier process left off, and leave the levels alone."""
        self._enter_noted()
        self._ledger = self._ledger.after(())
        self._ledger.load_counts(state)
        self._since = self._next_since = self._ledger.totals
        self._panel.load_counts(state.get("anomalies") or {})
        self._publish(self._published[-1])

    def _forget_levels(self) -> None:
        """After a restart the old level of loss and gradients says nothing about the new steps."""
        self._enter_noted()
        self._ledger = self._ledger.after_restart()
        self._since = self._next_since = self._ledger.totals

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
            self._panel.statuses,
            self.recent,
            self._evaluations,
            self._pauses,
            self._schedules,
            signals,
        )
