# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from math import cos, pi

import pytest

from tests.unit.detectors.feed import INF, NAN, feed, findings
from training_exporter.detectors import HEALTHY, WARMING_UP, Finding, LearningRateAnomaly

STEPS = 1000
SCHEDULES = {
    "constant": lambda n: 1e-3,
    "linear": lambda n: 1e-3 * (1 - n / STEPS),
    "warm-up": lambda n: 1e-3 * min(1.0, n / 100),
    "cosine": lambda n: 5e-4 * (1 + cos(pi * n / STEPS)),
    "step decay": lambda n: 1e-1 * 0.1 ** (n // 250),
    "warm-up, stable, decay": lambda n: 1e-3 * min(1.0, n / 100, (STEPS - n) / 200),
    "warm restarts": lambda n: 5e-4 * (1 + cos(pi * (n % 200) / 200)),
    "from zero": lambda n: 0.0 if n < 3 else 1e-7 * n,
    "a cycle": lambda n: 1e-4 + 1e-3 * (1 - abs(n % 100 - 50) / 50),
    "zero": lambda n: 0.0 if n < 10 else 1e-3,
}


def rates(*values: float) -> list[dict[str, float]]:
    return [{"a": value, "b": value / 2} for value in values]


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_common_schedule_is_silent(name: str) -> None:
    """Up, down, in steps and in cycles."""
    series = rates(*[SCHEDULES[name](step) for step in range(STEPS + 1)])
    assert not findings(feed(LearningRateAnomaly(), "learning_rates", series, max_steps=STEPS))


def test_a_jump_by_a_thousand_is_found_while_it_lasts() -> None:
    """In any group, from its first step to its last."""
    detector = LearningRateAnomaly()
    feed(detector, "learning_rates", rates(*[1e-3] * 50))
    jumped: list[dict[str, float]] = [{"a": 1e-3, "b": 0.5}] * 5
    verdicts = feed(detector, "learning_rates", jumped + rates(1e-3))
    assert verdicts == [Finding(0.5, pytest.approx(5e-3))] * 5 + [HEALTHY]


def test_a_jump_that_stays_is_taken_for_meant_in_the_end() -> None:
    """A person who raised the rate by hand is not alarmed for ever."""
    verdicts = feed(LearningRateAnomaly(), "learning_rates", rates(1e-3, *[1.0] * 200))
    assert findings(verdicts) == [*range(1, 101)]


@pytest.mark.parametrize("bad", [NAN, INF, -1e-3])
def test_what_no_rate_can_be(bad: float) -> None:
    """NaN, infinite and negative are found at once, and do not blind it."""
    verdicts = feed(LearningRateAnomaly(), "learning_rates", rates(bad, 1e-3, bad, 1e-3, 1.0))
    assert findings(verdicts) == [0, 2, 4]


def test_stuck_at_zero() -> None:
    """Twenty steps in a row at zero before the planned end are found, at the end they are not."""
    verdicts = feed(LearningRateAnomaly(), "learning_rates", rates(1e-3, *[0.0] * 30))
    assert findings(verdicts) == [*range(20, 31)]
    after_the_end = feed(LearningRateAnomaly(), "learning_rates", rates(*[0.0] * 30), max_steps=1)
    assert not findings(after_the_end)


def test_a_frozen_group_is_not_stuck() -> None:
    """As long as any group learns, zero is a choice."""
    series = [{"backbone": 0.0, "head": 1e-3}] * 100
    assert not findings(feed(LearningRateAnomaly(), "learning_rates", series))


def test_many_groups_are_looked_at_in_turns() -> None:
    """A jump among a hundred groups is found within 25 steps."""
    detector = LearningRateAnomaly()
    healthy = {f"layer {n}": 1e-3 for n in range(100)}
    assert not findings(feed(detector, "learning_rates", [healthy] * 100))
    assert findings(feed(detector, "learning_rates", [{**healthy, "layer 99": 5.0}] * 26))


def test_without_rates_there_is_nothing_to_judge() -> None:
    """It warms up until there are some, and keeps its verdict where they are missing."""
    detector = LearningRateAnomaly()
    verdicts = feed(detector, "learning_rates", [{}, {"a": 1e-3}, {"a": 1e-3}, {}])
    assert verdicts == [WARMING_UP, WARMING_UP, HEALTHY, HEALTHY]
