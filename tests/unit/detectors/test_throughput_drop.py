# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from random import Random

import pytest

from tests.unit.detectors.feed import INF, NAN, feed, findings, noisy
from training_exporter.detectors import HEALTHY, WARMING_UP, Finding, ThroughputDrop
from training_exporter.signals import StepSignals


def test_steps_that_became_much_slower() -> None:
    """Found on the tenth slow step, with paces as value and threshold."""
    verdicts = feed(ThroughputDrop(), "step_seconds", [0.5] * 100 + [1.25] * 20)
    assert findings(verdicts) == [*range(109, 120)]
    assert verdicts[109] == Finding(0.8, pytest.approx(1.0))


def test_a_short_slow_stretch_is_ignored() -> None:
    """Somebody else was busy on the machine for a moment."""
    series = [0.5] * 100 + [2.0] * 9 + [0.5] * 20 + [2.0] * 9
    assert not findings(feed(ThroughputDrop(), "step_seconds", series))


def test_single_slow_steps_are_ignored() -> None:
    """As after an evaluation, a checkpoint or a new epoch, every ten steps and by any factor."""
    series = noisy(0.5, 500, 0.1)
    series[::10] = [30.0] * 50
    assert not findings(feed(ThroughputDrop(), "step_seconds", series))


def test_slow_data_counts() -> None:
    """Waiting for data is not part of the step, yet it is what slows the run."""
    detector = ThroughputDrop()
    feed(detector, "step_seconds", [0.5] * 100, data_wait_seconds=0.01)
    assert findings(feed(detector, "step_seconds", [0.5] * 20, data_wait_seconds=1.0))


def test_steps_of_varying_length_compare_by_token() -> None:
    """Long sequences take long; the pace in tokens is the same."""
    random = Random(0)
    detector = ThroughputDrop()
    for step in range(1, 500):
        tokens = float(random.choice([100, 1000, 8000]))
        signals = StepSignals(step, 0.0, tokens=tokens, step_seconds=tokens / 8000)
        assert not isinstance(detector.observe(signals), Finding)
    slow = [StepSignals(step, 0.0, tokens=100.0, step_seconds=1.0) for step in range(500, 510)]
    assert isinstance([detector.observe(signals) for signals in slow][-1], Finding)


def test_tokens_that_come_and_go_are_not_compared_with_seconds() -> None:
    """It starts afresh when the unit changes."""
    detector = ThroughputDrop()
    feed(detector, "step_seconds", [0.5] * 100, tokens=1000.0)
    assert feed(detector, "step_seconds", [0.5] * 20) == [WARMING_UP] * 20


def test_it_recovers() -> None:
    """Quick steps take the evidence back."""
    series = [0.5] * 200 + [1.5] * 20 + [0.5] * 20
    assert findings(feed(ThroughputDrop(), "step_seconds", series))[-1] < 230


def test_what_is_no_duration_is_ignored() -> None:
    """Nor is a step without tokens a slow one."""
    detector = ThroughputDrop()
    feed(detector, "step_seconds", [0.5] * 100)
    assert feed(detector, "step_seconds", [None, NAN, INF, 0.0, -1.0] * 5) == [HEALTHY] * 25
    assert feed(detector, "step_seconds", [9.0] * 20, tokens=0.0) == [HEALTHY] * 20
