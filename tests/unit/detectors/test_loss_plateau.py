# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from math import log

import pytest

from tests.unit.detectors.feed import NAN, falling, feed, findings, noisy
from training_exporter.detectors import (
    HEALTHY,
    WARMING_UP,
    Finding,
    RobustLossPlateau,
    TextbookLossPlateau,
)


def test_textbook_fires_on_the_fifth_flat_step() -> None:
    """The first W steps warm up, then it takes five steps in a row."""
    verdicts = feed(TextbookLossPlateau(), "loss", [1.0] * 206)
    assert verdicts[:200] == [WARMING_UP] * 200
    assert verdicts[200:204] == [HEALTHY] * 4
    assert verdicts[204:] == [Finding(0.0, 0.001)] * 2


@pytest.mark.parametrize(("change", "fires"), [(0.0009, True), (0.0011, False)])
def test_textbook_at_the_edge_of_tau(change: float, fires: bool) -> None:
    """Just below tau is flat, just above is not."""
    verdicts = feed(TextbookLossPlateau(window=10), "loss", [1.0] * 10 + [1.0 - change] * 5)
    assert bool(findings(verdicts)) is fires


def test_textbook_one_step_that_moves_starts_the_count_afresh() -> None:
    """Five in a row means in a row."""
    verdicts = feed(TextbookLossPlateau(window=10), "loss", [1.0] * 14 + [1.5] + [1.0] * 5)
    assert findings(verdicts) == [19]


def test_textbook_nan_does_not_enter_the_window() -> None:
    """A NaN neither counts as a step nor ends a row."""
    detector = TextbookLossPlateau(window=10)
    verdicts = feed(detector, "loss", [1.0] * 10 + [1.0] * 4 + [NAN, None, 1.0])
    assert verdicts[14:16] == [HEALTHY, HEALTHY]
    assert findings(verdicts) == [16]


def test_robust_finds_a_run_that_never_learns() -> None:
    """Noise around a level is a plateau, once there is enough of it."""
    verdicts = feed(RobustLossPlateau(), "loss", noisy(5.4, 1000, 0.01))
    found = findings(verdicts)
    assert 160 <= found[0] < 250
    verdict = verdicts[found[0]]
    assert isinstance(verdict, Finding)
    assert verdict.value < verdict.threshold == 0.01


def test_robust_finds_a_loss_that_stops() -> None:
    """A run that stops learning half way is found before it is three times as long."""
    series = falling(10.0, 1.0, 400, 0.01) + noisy(1.45, 800, 0.005)
    found = findings(feed(RobustLossPlateau(), "loss", series))
    assert found
    assert found[0] > 400


def test_robust_leaves_a_logarithmic_decline_alone() -> None:
    """What looks flat over any fixed window still falls over half of the run."""
    series = [6.0 - 0.5 * log(1.0 + step) for step in range(5000)]
    assert not findings(feed(RobustLossPlateau(), "loss", series))


def test_robust_ends_when_the_loss_moves_again() -> None:
    """A plateau that is left is a plateau no more."""
    series = [*noisy(5.4, 400, 0.01), *[5.4 * 0.995**step for step in range(300)]]
    verdicts = feed(RobustLossPlateau(), "loss", series)
    assert findings(verdicts[:400])
    assert verdicts[-1] is HEALTHY


def test_robust_is_silent_on_losses_around_zero() -> None:
    """Relative change of a mean near zero is large and says nothing; so it is no plateau."""
    series = [x - 1.0 + 0.3 / (1 + step / 100) for step, x in enumerate(noisy(1.0, 2000, 0.3))]
    assert not findings(feed(RobustLossPlateau(), "loss", series))


def test_robust_memory_does_not_grow() -> None:
    """Blocks are merged in pairs, so that a long run has fewer than 64."""
    detector = RobustLossPlateau()
    feed(detector, "loss", noisy(2.0, 20_000))
    state = detector.state_dict()
    assert 32 <= len(state["means"]) < 64
    assert state["length"] == 512
