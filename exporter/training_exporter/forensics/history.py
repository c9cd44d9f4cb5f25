# SPDX-License-Identifier: Apache-2.0
"""What the steps before say about the cause of a NaN. None: nothing."""

from __future__ import annotations

from itertools import pairwise
from statistics import median

from training_exporter.forensics.report import Report, broken, shown
from training_exporter.forensics.sources import parameters_were_broken

_LAST = 5
"""Steps before the event in which a change counts as one that led to it."""
_FEWEST_BEFORE = 3
"""Steps before those from which a level can be told."""
_RATE_JUMP = 5.0
_NORM_RISE = 10.0
_LOSS_RISE = 3.0


def learning_rate(report: Report) -> str | None:
    """The learning rate of the last steps is not finite, or jumped."""
    return rate_jumped(report)


def rate_jumped(report: Report) -> str | None:
    """As in `learning_rate`: a step whose rate is _RATE_JUMP times that of the step before.

    The first rise out of zero is where a warm-up begins and no jump, nor is the second step of one,
    which doubles the rate.
    """
    rates = [(row.step, row.learning_rate) for row in report.steps[-_LAST - 1 :]]
    for step, rate in rates:
        if broken(rate):
            return f"the learning rate was {shown(rate)} at step {step}"
    for (_, before), (step, rate) in pairwise(rates):
        if before and rate and before > 0 and rate >= _RATE_JUMP * before:
            return f"the learning rate went from {shown(before)} to {shown(rate)} at step {step}"
    return None


def parameters(report: Report) -> str | None:
    """The weights were broken before the step began, or the step before was."""
    seen = report.parameters
    if seen is not None and parameters_were_broken(report):
        number = f"{seen.bad} of {seen.checked} parameters are not finite"
        return f"{number}, {'from the first step on' if is_first(report) else _seen_at(report)}"
    previous = report.before[-1] if report.before else None
    if previous is not None and previous.broke_weights:
        return f"step {previous.step} was non-finite already, and its update was made"
    return None


def _seen_at(report: Report) -> str:
    previous = report.before[-1]
    if previous.non_finite:
        return f"and step {previous.step} before was non-finite already"
    return f"though step {previous.step} before looked finite: its update broke them"


def explosion(report: Report) -> str | None:
    """Gradient norm or loss rose far over their level in the steps right before the event."""
    return is_rising(report)


def is_rising(report: Report) -> str | None:
    """As in `explosion`."""
    norms = _finite([row.grad_norm for row in report.before])
    losses = _finite([row.loss for row in report.steps])
    return _rise("gradient norm", norms, _NORM_RISE) or _rise("loss", losses, _LOSS_RISE)


def _rise(name: str, values: list[float], factor: float) -> str | None:
    earlier, last = values[:-_LAST], values[-_LAST:]
    if len(earlier) < _FEWEST_BEFORE:
        earlier, last = values[:_FEWEST_BEFORE], values[_FEWEST_BEFORE:]
    if not last or len(earlier) < _FEWEST_BEFORE:
        return None
    level, peak = median(earlier), max(last)
    if level <= 0 or peak < factor * level:
        return None
    return f"the {name} rose from about {level:.3g} to {peak:.3g} in the steps before"


def first_step(report: Report) -> str | None:
    """No step with a finite loss came before. A loss scale that is being found is not meant."""
    if not is_first(report) or report.loss is None or not broken(report.loss):
        return None
    return f"the loss is {shown(report.loss)} at step {report.step}, with no finite one before it"


def is_first(report: Report) -> bool:
    """Whether the report knows no step before with a finite loss."""
    return not _finite([row.loss for row in report.before])


def _finite(values: list[float | None]) -> list[float]:
    return [value for value in values if value is not None and not broken(value)]
