# SPDX-License-Identifier: Apache-2.0
"""What one optimiser step and one evaluation looked like, in host values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from numbers import Real
from types import MappingProxyType
from typing import NamedTuple

_NO_METRICS: Mapping[str, float] = MappingProxyType({})


@dataclass(slots=True)
class StepSignals:
    """One optimiser step as it really was.

    A field is None when it is not known for this step, which is different from zero. Non-finite
    floats are legal and arrive untouched. Who is handed one does not change it. It is not frozen,
    nor a tuple, because one is built on every step and its fields are read dozens of times: slots
    are read in a third of the time, and freezing would triple the cost of building it.

    Attributes:
        step: number of the optimiser step, counted from 1.
        timestamp: Unix time in seconds at which the step ended.
        loss: loss of the whole step, summed over its micro-batches as the trainer reports it.
        grad_norm: global L2 norm of the gradients before clipping, unscaled.
        clip_threshold: norm above which gradients are clipped; None when they never are.
        learning_rates: learning rate this step used, by parameter group.
        loss_scale: scale of the mixed-precision gradient scaler.
        skipped: True when the optimiser left the weights alone in this step.
        epoch: position in the data, in epochs.
        max_steps: step at which the run is planned to end.
        tokens: tokens this process trained on in this step, padding apart where it is known.
        samples: rows this process trained on in this step.
        step_seconds: wall time of the step; waiting for data, evaluation, saving and logging
            are not part of it.
        data_wait_seconds: wall time this step waited for its data.
        memory_allocated_bytes: bytes held by live tensors on this process's accelerator.
        positions: token positions of this step, padding included; None where it is not told apart.
        flops: floating-point operations that the model needed for this step on this process.
    """

    step: int
    timestamp: float
    loss: float | None = None
    grad_norm: float | None = None
    clip_threshold: float | None = None
    learning_rates: Mapping[str, float] = field(default_factory=dict)
    loss_scale: float | None = None
    skipped: bool | None = None
    epoch: float | None = None
    max_steps: int | None = None
    tokens: float | None = None
    samples: float | None = None
    step_seconds: float | None = None
    data_wait_seconds: float | None = None
    memory_allocated_bytes: float | None = None
    positions: float | None = None
    flops: float | None = None


_NUMERIC = tuple(entry.name for entry in fields(StepSignals) if entry.name != "learning_rates")


def require_numbers(signals: StepSignals) -> None:
    """Refuse a step of which a field is no number.

    Raises:
        TypeError: naming the field and what it holds.
    """
    for name in _NUMERIC:
        value = getattr(signals, name)
        if value is not None and not isinstance(value, Real):
            raise TypeError(f"{name} must be a number or None, got {value!r}")


class Evaluation(NamedTuple):
    """One evaluation of one data set.

    Attributes:
        step: optimiser step after which the evaluation ran.
        timestamp: Unix time in seconds at which it ended.
        dataset: name of the data set, "eval" when the trainer has only one.
        loss: its loss, None when none was computed.
        metrics: the other numeric results, by name and without the data set's prefix.
    """

    step: int
    timestamp: float
    dataset: str
    loss: float | None = None
    metrics: Mapping[str, float] = _NO_METRICS
