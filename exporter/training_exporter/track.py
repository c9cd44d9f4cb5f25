# SPDX-License-Identifier: Apache-2.0
"""From verdicts to anomalies: when one begins, how long it goes on, how many there were."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

from training_exporter.catalog import RESTART
from training_exporter.detectors.base import (
    WARMING_UP,
    Detector,
    EvaluationDetector,
    Finding,
    Verdict,
)
from training_exporter.signals import Evaluation, StepSignals
from training_exporter.snapshot import AnomalyStatus

CALM_STEPS = 10
"""Steps without a finding after which an anomaly is over; the same gap that labels merge over."""


class Track:
    """A detector and the story of its findings.

    Attributes:
        observe: judges a step; the detector's own method until the detector is retired.
        verdict: the last verdict.
        active: whether an anomaly goes on.
    """

    __slots__ = (
        "_calm", "_detector", "_last", "_last_step", "_last_time", "_retired", "_total", "active",
        "kind", "observe", "verdict",
    )  # fmt: skip

    def __init__(self, detector: Detector) -> None:
        self._detector = detector
        self._retired = False
        self.kind = detector.kind
        self.observe = detector.observe
        self.verdict: Verdict = WARMING_UP
        self.active = False
        self._calm = 0
        self._total = 0
        self._last: Finding | None = None
        self._last_step: int | None = None
        self._last_time: float | None = None

    def observe_evaluation(self, evaluation: Evaluation) -> Verdict:
        """Judge an evaluation, if the detector does such a thing."""
        if self._retired or not isinstance(self._detector, EvaluationDetector):
            return self.verdict
        return self._detector.observe_evaluation(evaluation)

    def found(self, finding: Finding, step: int, timestamp: float) -> bool:
        """Note a finding; True when it begins a new anomaly. Each restart is one of its own."""
        begins = not self.active or self.kind == RESTART
        self._total += begins
        self.active, self._calm = True, 0
        self._last, self._last_step, self._last_time = finding, step, timestamp
        return begins

    def settle(self, step: int, timestamp: float) -> None:
        """Note that an active anomaly goes on, or has been quiet for another step."""
        if isinstance(self.verdict, Finding):
            self._last_step, self._last_time = step, timestamp
        else:
            self._calm += 1
            self.active = self._calm < CALM_STEPS

    def forget_levels(self) -> None:
        """Start judging afresh, and keep the count of what was found."""
        self.verdict, self.active = WARMING_UP, False
        if not self._retired:
            self._detector.load_state_dict({})

    def retire(self) -> None:
        """Never ask the detector again. What it has found stays; it counts as not ready."""
        self._retired = True
        self.observe = _not_asked
        self.verdict, self.active = WARMING_UP, False

    def levels(self) -> dict[str, Any]:
        """What belongs to the weights and goes back to a checkpoint with them."""
        return {
            "detector": {} if self._retired else self._detector.state_dict(),
            "active": self.active,
            "calm": self._calm,
        }

    def load_levels(self, state: Mapping[str, Any]) -> None:
        """Take over what was learnt. What is missing starts afresh."""
        if not self._retired:
            self._detector.load_state_dict(state.get("detector") or {})
            self.active, self._calm = bool(state.get("active")), int(state.get("calm") or 0)
        self.verdict = WARMING_UP

    def counts(self) -> dict[str, Any]:
        """What was found in this process, whatever became of the weights."""
        return {
            "total": self._total,
            "last_step": self._last_step,
            "last_time": self._last_time,
            "last": None if self._last is None else [_portable(x) for x in self._last],
        }

    def load_counts(self, state: Mapping[str, Any]) -> None:
        """Take over what an earlier process found. What is missing starts afresh."""
        self._total = state.get("total", 0)
        self._last_step = state.get("last_step")
        self._last_time = state.get("last_time")
        last = state.get("last")
        self._last = Finding(*map(float, last)) if last else None

    def status(self) -> AnomalyStatus:
        value, threshold = self._last or (None, None)
        ready = self.verdict is not WARMING_UP
        return AnomalyStatus(
            self.kind,
            ready,
            self.active,
            self._total,
            self._last_step,
            self._last_time,
            value,
            threshold,
        )


def _not_asked(signals: StepSignals) -> Verdict:
    return WARMING_UP


def _portable(x: float) -> float | str:
    """A number that any JSON can hold; `float` reads both."""
    return x if isfinite(x) else str(x)
