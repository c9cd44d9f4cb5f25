# SPDX-License-Identifier: Apache-2.0
"""Steps and reports to try the forensics on."""

from __future__ import annotations

from dataclasses import replace
from math import nan
from typing import Any

from training_exporter.forensics.report import About, Findings, Inspection, Report, TensorFinding
from training_exporter.forensics.watch import Event, compose, row_of
from training_exporter.signals import StepSignals

ABOUT = About("my-run", 3, "transformers", "GPT2LMHeadModel", {"torch": "2.13.0"})
CLEAN = Inspection(100, 3, 0)


def signals(step: int, **fields: Any) -> StepSignals:
    usual: dict[str, Any] = {"loss": 2.0, "grad_norm": 1.0, "learning_rates": {"0": 1e-3}}
    return StepSignals(step, 1.7e9 + step, **{**usual, **fields})


def tensor(name: str = "pixel_values", nan: int = 12, inf: int = 1) -> TensorFinding:
    return TensorFinding(name, (4, 3, 8), "float32", nan, inf)


def bad(step: int = 100, *, before_update: bool = False) -> Inspection:
    return Inspection(step, 28, 1, (tensor("h.0.weight"),), before_update)


def report(
    *before: StepSignals, findings: Findings | None = None, history: int = 20, **last: Any
) -> Report:
    """A report on step 100, after `history` healthy steps and then those in `before`."""
    first = 100 - len(before) - history
    healthy = [signals(first + index) for index in range(history)]
    numbered = [replace(one, step=100 - len(before) + at) for at, one in enumerate(before)]
    event = signals(100, **{"loss": nan, "grad_norm": nan, **last})
    steps = tuple(row_of(one) for one in [*healthy, *numbered, event])
    return compose(Event(event, steps), findings or Findings(inputs=CLEAN), ABOUT)
