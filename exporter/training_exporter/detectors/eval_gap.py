# SPDX-License-Identifier: Apache-2.0
"""An evaluation loss that rises while the training loss falls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from training_exporter.catalog import EVAL_GAP
from training_exporter.detectors.base import (
    HEALTHY,
    WARMING_UP,
    Finding,
    Quiet,
    StatefulDetector,
    Verdict,
    require,
)
from training_exporter.detectors.blocks import whole
from training_exporter.signals import Evaluation, StepSignals

MAX_DATASETS = 32
"""Data sets that are followed; further ones are not judged."""


class _Course(StatefulDetector):
    """The evaluations of one data set so far."""

    _learnt = ("seen", "best", "train_at_best", "last", "rises", "total", "steps")

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self.seen = 0
        self.best = 0.0
        self.train_at_best = 0.0
        self.last = 0.0
        self.rises = 0
        self.total = 0.0
        self.steps = 0


class EvalGap(StatefulDetector):
    """`patience` evaluations in a row above the best one, with a lower training loss than then.

    Above means by more than `margin` of the best. The training loss of an evaluation is the mean
    since the one before it. Each data set is followed by itself. The finding stays until the next
    evaluation of that data set.
    """

    kind = EVAL_GAP

    def __init__(self, *, margin: float = 0.05, patience: float = 3) -> None:
        require("margin", margin, least=0)
        self._margin = margin
        self._patience = whole("patience", patience, least=1)
        self._forget()

    def _forget(self) -> None:
        self._total = 0.0
        self._steps = 0
        self._courses: dict[str, _Course] = {}
        self._settle()

    def state_dict(self) -> dict[str, Any]:
        courses = {name: course.state_dict() for name, course in self._courses.items()}
        return {"total": self._total, "steps": self._steps, "courses": courses}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._forget()
        self._total = state.get("total", 0.0)
        self._steps = state.get("steps", 0)
        for name, saved in list(state.get("courses", {}).items())[:MAX_DATASETS]:
            self._courses[name] = course = _Course()
            course.load_state_dict(saved)
        self._settle()

    def observe(self, signals: StepSignals) -> Verdict:
        loss = signals.loss
        if loss is None or loss - loss != 0.0:
            return self._quiet
        self._total += loss
        self._steps += 1
        return self._verdict

    def observe_evaluation(self, evaluation: Evaluation) -> Verdict:
        """Judge one evaluation. One without a finite loss, or without a step since the last one
        of its data set, changes nothing."""
        loss = evaluation.loss
        if loss is None or loss - loss != 0.0:
            return self._quiet
        self._share_out(evaluation.dataset)
        course = self._courses.get(evaluation.dataset)
        if course is not None and course.steps > 0:
            self._note(course, loss, course.total / course.steps)
            course.total, course.steps = 0.0, 0
            self._settle()
        return self._verdict

    def _share_out(self, dataset: str) -> None:
        """Add the training losses since the last evaluation to those of each data set.

        Each has a sum of its own: differences of one long sum would lose their digits for good
        once a run has seen a loss of 1e20.
        """
        if dataset not in self._courses and len(self._courses) < MAX_DATASETS:
            self._courses[dataset] = _Course()
        for course in self._courses.values():
            course.total += self._total
            course.steps += self._steps
        self._total, self._steps = 0.0, 0

    def _note(self, course: _Course, loss: float, train: float) -> None:
        course.seen += 1
        course.last = loss
        if course.seen == 1 or loss <= course.best:
            course.best, course.train_at_best, course.rises = loss, train, 0
        elif loss > self._limit(course) and train < course.train_at_best:
            course.rises += 1
        else:
            course.rises = 0

    def _limit(self, course: _Course) -> float:
        return course.best + self._margin * abs(course.best)

    def _settle(self) -> None:
        """Set the verdict that holds until the next evaluation."""
        self._quiet: Quiet = WARMING_UP
        self._verdict: Verdict = WARMING_UP
        for course in self._courses.values():
            if course.seen > self._patience:
                self._quiet = HEALTHY
            if course.rises >= self._patience:
                self._verdict = Finding(course.last, self._limit(course))
        if isinstance(self._verdict, Quiet):
            self._verdict = self._quiet
