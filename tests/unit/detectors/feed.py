# SPDX-License-Identifier: Apache-2.0
"""Feeds series to a detector."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from random import Random
from typing import Any

from training_exporter.detectors.base import Detector, Finding, Verdict
from training_exporter.signals import StepSignals

NAN = float("nan")
INF = float("inf")


def feed(
    detector: Detector, field: str, values: Iterable[Any], start: int = 1, **fixed: Any
) -> list[Verdict]:
    """Observe one step per value of `field`; the other fields as given."""
    return [
        detector.observe(StepSignals(step, 0.0, **{field: value}, **fixed))
        for step, value in enumerate(values, start)
    ]


def findings(verdicts: Sequence[Verdict]) -> list[int]:
    """Positions at which something was found."""
    return [place for place, verdict in enumerate(verdicts) if isinstance(verdict, Finding)]


def noisy(level: float, count: int, noise: float = 0.05, seed: int = 0) -> list[float]:
    """Values around a level, with relative Gaussian noise."""
    random = Random(seed)
    return [level * (1.0 + random.gauss(0.0, noise)) for _ in range(count)]


def falling(start: float, end: float, count: int, noise: float = 0.03) -> list[float]:
    """A healthy loss curve: a power law down from one level to another, with noise."""
    random = Random(1)
    return [
        (end + (start - end) / (1.0 + step / 20.0)) * (1.0 + random.gauss(0.0, noise))
        for step in range(count)
    ]
