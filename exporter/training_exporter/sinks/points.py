# SPDX-License-Identifier: Apache-2.0
"""From steps to what there is to plot of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from training_exporter.signals import Evaluation, StepSignals
from training_exporter.sinks.sink import Point
from training_exporter.snapshot import Snapshot

PREFIX: Final = "monitor/"
"""What names of ours begin with where those of others are too."""

_EVAL: Final = "eval"
"""Name of a trainer's only data set, and what names of an evaluation begin with."""

_ALIKE: Final = (
    "loss", "grad_norm", "clip_threshold", "loss_scale", "epoch", "step_seconds",
    "data_wait_seconds", "memory_allocated_bytes",
)  # fmt: skip
"""Values of a step that are told as they are."""


def points_of(steps: Sequence[StepSignals], snapshot: Snapshot) -> list[Point]:
    """A point for each step; the last one has the averages, which are those of `snapshot`, as it
    was some steps later at most."""
    points = [Point(step.step, step.timestamp, dict(_values(step))) for step in steps]
    if points:
        averages = {"loss_ema": snapshot.loss_ema, "grad_norm_ema": snapshot.grad_norm_ema}
        known = {name: value for name, value in averages.items() if value is not None}
        points[-1] = points[-1]._replace(values={**points[-1].values, **known})
    return points


def point_of(results: Evaluation) -> Point:
    """The point of an evaluation, by names that `training-exporter replay` takes for one:
    `eval_loss`, or `eval_wiki_loss` of the data set "wiki"."""
    which = _EVAL if results.dataset == _EVAL else f"{_EVAL}_{results.dataset}"
    loss = {} if results.loss is None else {"loss": results.loss}
    values = {f"{which}_{name}": value for name, value in {**results.metrics, **loss}.items()}
    return Point(results.step, results.timestamp, values)


def _values(step: StepSignals) -> Iterator[tuple[str, float]]:
    for name in _ALIKE:
        value = getattr(step, name)
        if value is not None:
            yield name, value
    rates = step.learning_rates
    for group, rate in rates.items():
        yield ("learning_rate" if len(rates) == 1 else f"learning_rate/{group}"), rate
    seconds = (step.step_seconds or 0.0) + (step.data_wait_seconds or 0.0)
    if step.tokens is not None and seconds > 0.0:
        yield "tokens_per_second", step.tokens / seconds
