# SPDX-License-Identifier: Apache-2.0
"""When to write a report, and what the steps before were like."""

from __future__ import annotations

import sys
from collections import deque
from dataclasses import replace
from math import isnan
from platform import python_version
from typing import Any, Final, NamedTuple

from training_exporter._version import __version__
from training_exporter.catalog import SOURCE_LOSS
from training_exporter.forensics.report import (
    BATCH_INDICES,
    FIRST_LAYER,
    MOST_INDICES,
    MOST_STEPS,
    About,
    Findings,
    Gap,
    ModuleFinding,
    Report,
    StepRow,
    broken,
)
from training_exporter.forensics.sources import source_of
from training_exporter.signals import StepSignals

QUIET_STEPS: Final = 1000
COLLAPSED_SCALE: Final = 1.0
"""A loss scale below it makes gradients smaller, not larger: there is no scale that fits."""

_NAN: Final = "nan"
_OVERFLOW: Final = "overflow"
_COLLAPSE: Final = "collapse"

_LIBRARIES: Final = ("torch", "transformers", "accelerate", "peft", "trl", "deepspeed")

_OF_STEP: Final = ("step", "timestamp", "epoch", "loss", "grad_norm", "loss_scale", "skipped")

_NO_LAYER_PASS: Final = Gap(
    FIRST_LAYER,
    "the pass over the layers did not run on this step; with a layer interval of 1 it runs on each",
)
_NO_SAMPLER: Final = Gap(BATCH_INDICES, "the rows of the batch were not told to the exporter")


class Event(NamedTuple):
    """A step of which a report is due, and the last steps, it included, oldest first."""

    signals: StepSignals
    steps: tuple[StepRow, ...]


class NonFiniteWatch:
    """Decides which non-finite steps get a report, and remembers the steps before.

    One event is due at the first non-finite loss or gradient norm, and the next one `quiet_steps`
    steps later at the earliest. Gradients that overflow under a loss scale have a silence of their
    own, and so has a scale that has collapsed: an overflow is how mixed precision finds its scale,
    happens in the first steps of most runs, and must not silence the report on a real NaN. Steps
    are counted as they come, since their numbers may begin anew with each epoch.

    A healthy step costs an entry in a ring. For the training thread only.

    Args:
        quiet_steps: steps after a report in which there is no other of its sort.

    Raises:
        ValueError: quiet_steps below 1.
    """

    def __init__(self, *, quiet_steps: int = QUIET_STEPS) -> None:
        if quiet_steps < 1:
            raise ValueError(f"quiet_steps must be at least 1, got {quiet_steps!r}")
        self._quiet_steps = quiet_steps
        self._recent: deque[StepSignals] = deque(maxlen=MOST_STEPS)
        self._seen = 0
        self._quiet_until: dict[str, int] = {}
        self._last_step = 0

    def observe(self, signals: StepSignals) -> Event | None:
        """Take in a step; the event, when a report on it is due."""
        if signals.step < self._last_step:  # gone back to a checkpoint: another history
            self._recent.clear()
        self._last_step = signals.step
        self._seen += 1
        self._recent.append(signals)
        loss, norm = signals.loss, signals.grad_norm
        if (loss is None or loss - loss == 0.0) and (norm is None or norm - norm == 0.0):
            return None
        return self._event(signals)

    def discard(self) -> None:
        """Forget the steps so far and the silence after them: another training begins."""
        self._recent.clear()
        self._quiet_until.clear()

    def awaits_nan(self, outstanding: int = 0) -> bool:
        """Whether a non-finite loss of the step to come would get a report, so that a look is worth
        it.

        Args:
            outstanding: steps before it that are not observed yet.
        """
        return self._seen + outstanding + 1 >= self._quiet_until.get(_NAN, 0)

    def _event(self, signals: StepSignals) -> Event | None:
        sort = _sort(signals)
        if self._seen < self._quiet_until.get(sort, 0):
            return None
        self._quiet_until[sort] = self._seen + self._quiet_steps
        return Event(signals, tuple([row_of(recent) for recent in self._recent]))


def _sort(signals: StepSignals) -> str:
    if signals.loss_scale is None or broken(signals.loss):
        return _NAN
    return _COLLAPSE if signals.loss_scale < COLLAPSED_SCALE else _OVERFLOW


def row_of(signals: StepSignals) -> StepRow:
    """The numbers of a step that a report shows."""
    rates = signals.learning_rates.values()
    return StepRow(
        signals.step,
        signals.loss,
        signals.grad_norm,
        next((rate for rate in rates if isnan(rate)), max(rates, default=None)),
        signals.loss_scale,
        signals.skipped,
    )


def compose(
    event: Event,
    findings: Findings,
    about: About,
    *,
    first_layer: str | None = None,
    first_module: ModuleFinding | None = None,
) -> Report:
    """The report on an event.

    Args:
        event: what the watch said.
        findings: what the inspection of the device found.
        about: which run it is.
        first_layer: the first layer with a non-finite gradient, if a pass over the layers ran on
            this very step.
        first_module: the first module with a non-finite output, if one was looked for.
    """
    indices = findings.batch_indices
    of_step: dict[str, Any] = {name: getattr(event.signals, name) for name in _OF_STEP}
    report = Report(
        about=about,
        source=SOURCE_LOSS,  # replaced below, once all that decides it is in the report
        **of_step,
        learning_rates=dict(event.signals.learning_rates),
        steps=event.steps,
        inputs=findings.inputs,
        labels=findings.labels,
        parameters=findings.parameters,
        gradients=findings.gradients,
        first_layer=first_layer,
        first_module=first_module,
        batch_indices=None if indices is None else indices[:MOST_INDICES],
        gaps=_gaps(findings, first_layer),
    )
    return replace(report, source=source_of(report))


def _gaps(findings: Findings, first_layer: str | None) -> tuple[Gap, ...]:
    gaps = list(findings.gaps)
    said = {gap.what for gap in gaps}
    if first_layer is None and FIRST_LAYER not in said:
        gaps.append(_NO_LAYER_PASS)
    if findings.batch_indices is None and BATCH_INDICES not in said:
        gaps.append(_NO_SAMPLER)
    return tuple(gaps)


def versions_in_use() -> dict[str, str]:
    """Versions of Python, the exporter and the libraries that are loaded. Loads none."""
    versions = {"python": python_version(), "training-exporter": __version__}
    for name in _LIBRARIES:
        version = getattr(sys.modules.get(name), "__version__", None)
        if version is not None:
            versions[name] = str(version)
    return versions
