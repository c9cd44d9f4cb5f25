# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from random import Random

import pytest

from tests.unit.detectors.feed import INF, NAN, falling, feed, findings, noisy
from training_exporter.detectors import (
    HEALTHY,
    WARMING_UP,
    Detector,
    Finding,
    RobustDivergence,
    RobustLossSpike,
    TextbookLossSpike,
)


def test_textbook_compares_with_the_average_of_the_steps_before() -> None:
    """At gamma times the average it is silent, above it fires with that very threshold."""
    verdicts = feed(TextbookLossSpike(), "loss", [1.0, 1.0, 1.0, 2.0])
    assert verdicts == [WARMING_UP, HEALTHY, HEALTHY, HEALTHY]
    assert feed(TextbookLossSpike(), "loss", [1.0, 1.0, 2.5])[-1] == Finding(2.5, 2.0)


def test_textbook_updates_after_comparing() -> None:
    """The spike itself joins the average, corrected for its start, only for the next step."""
    detector = TextbookLossSpike(beta=0.5)
    feed(detector, "loss", [1.0, 4.0])
    # EMA = (0.5 * 0.5 * 1 + 0.5 * 4) / (1 - 0.25) = 3
    assert feed(detector, "loss", [6.5])[-1] == Finding(6.5, pytest.approx(6.0))


@pytest.mark.parametrize("detector", [TextbookLossSpike(), RobustLossSpike()])
def test_one_high_loss_is_a_spike(detector: TextbookLossSpike | RobustLossSpike) -> None:
    """A single loss at three times its level is found on its step, and nothing else is."""
    series = noisy(2.0, 200)
    series[150] = 6.0
    verdicts = feed(detector, "loss", series)
    assert findings(verdicts) == [150]
    found = verdicts[150]
    assert isinstance(found, Finding)
    assert found.value == 6.0 > found.threshold


@pytest.mark.parametrize("detector", [TextbookLossSpike(), RobustLossSpike()])
def test_non_finite_losses_do_not_blind_it(detector: TextbookLossSpike | RobustLossSpike) -> None:
    """A spike after NaN and Inf is found, and those leave the last quiet verdict."""
    feed(detector, "loss", noisy(2.0, 100))
    assert feed(detector, "loss", [NAN, INF, -INF, None]) == [HEALTHY] * 4
    assert findings(feed(detector, "loss", [2.0, 9.0])) == [1]


def test_robust_finds_a_shift_that_textbook_misses() -> None:
    """A level that rises by a third and stays is found within five steps, and then is the level."""
    series = noisy(2.0, 200, noise=0.02) + noisy(2.7, 200, noise=0.02)
    robust = findings(feed(RobustLossSpike(), "loss", series))
    assert 200 <= robust[0] < 205
    assert robust[-1] < 230
    assert not findings(feed(TextbookLossSpike(), "loss", series))


def test_robust_finds_a_spike_in_the_first_fall_of_the_loss() -> None:
    """An average over all steps lags that fall and hides the spike; the last block does not."""
    series = falling(10.0, 1.0, 200)
    series[60] *= 2.0
    assert findings(feed(RobustLossSpike(), "loss", series)) == [60]
    assert not findings(feed(TextbookLossSpike(), "loss", series))


def test_robust_asks_more_of_a_noisy_run() -> None:
    """What is a spike in a calm run is nothing in a wild one."""
    calm = [*noisy(2.0, 100, noise=0.02), 3.6]
    wild = [*noisy(2.0, 100, noise=0.25), 3.6]
    assert findings(feed(RobustLossSpike(), "loss", calm)) == [100]
    assert not findings(feed(RobustLossSpike(), "loss", wild))


@pytest.mark.parametrize("seed", range(5))
def test_robust_is_silent_on_signed_and_tiny_losses(seed: int) -> None:
    """Losses around zero, below it, or tiny ones have no ratios worth the name."""
    around = [x - 1.0 for x in noisy(1.0, 2000, 0.3, seed)]
    below = [-x for x in noisy(5.0, 2000, 0.1, seed)]
    tiny = [1e-9 * x for x in noisy(1.0, 2000, 0.1, seed)]
    for series in (around, below, tiny, [0.0] * 500):
        assert not findings(feed(RobustLossSpike(), "loss", series))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("detector", [RobustLossSpike(), RobustDivergence()])
def test_policy_losses_are_silent(detector: Detector, seed: int) -> None:
    """Exactly 0 at first, then tiny, heavy-tailed and of either sign, as in GRPO."""
    detector.load_state_dict({})
    random = Random(seed)
    series = [0.0] * 50 + [0.01 * random.gauss(0, 1) / (0.3 + random.random()) for _ in range(2000)]
    assert not findings(feed(detector, "loss", series))


def test_robust_still_finds_a_spike_of_a_signed_loss() -> None:
    """A jump of many times the usual span is a spike also where the loss is negative."""
    series = [-x for x in noisy(5.0, 200, 0.02)]
    series[150] = 3.0
    assert findings(feed(RobustLossSpike(), "loss", series)) == [150]


def test_textbook_does_not_judge_by_an_average_that_is_not_positive() -> None:
    """A ratio to zero or less says nothing."""
    assert not findings(feed(TextbookLossSpike(), "loss", [-1.0, -1.0, -4.0, 3.0, 0.0]))


@pytest.mark.parametrize("resumed", [[3.3, 3.4, 3.5, 7.0]])
def test_robust_is_ready_soon_after_a_resume(resumed: list[float]) -> None:
    """A run that breaks on its fourth step is found on its fourth step."""
    assert findings(feed(RobustLossSpike(), "loss", resumed)) == [3]
