# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from tests.unit.detectors.feed import INF, NAN, falling, feed, findings, noisy
from training_exporter.detectors import HEALTHY, WARMING_UP, Finding, RobustDivergence


def test_a_loss_that_climbs_for_good_diverges() -> None:
    """A rise by two per cent a step is found, and the finding stays while it goes on."""
    climb = [2.0 * 1.02**step for step in range(120)]
    found = findings(feed(RobustDivergence(), "loss", noisy(2.0, 300) + climb))
    assert 310 < found[0] < 350
    assert found[-1] == 419


def test_an_explosion_of_the_loss_is_found_within_a_few_steps() -> None:
    """Each step adds at most its share, so that several must agree."""
    detector = RobustDivergence()
    feed(detector, "loss", noisy(2.0, 100))
    verdicts = feed(detector, "loss", [1e3, 1e6, 1e9, 1e12])
    assert findings(verdicts) == [2, 3]
    assert verdicts[2] == Finding(pytest.approx(8.7, abs=0.1), 7.0)


def test_a_single_wild_loss_is_no_divergence() -> None:
    """However high it is: that is a spike."""
    series = noisy(2.0, 400)
    series[300] = 1e30
    assert not findings(feed(RobustDivergence(), "loss", series))


def test_a_hump_that_passes_is_forgotten() -> None:
    """After the loss is back at its level the finding ends."""
    series = noisy(2.0, 300) + noisy(6.0, 20) + noisy(2.0, 400)
    found = findings(feed(RobustDivergence(), "loss", series))
    assert found
    assert found[-1] < 480


def test_a_new_level_becomes_the_level() -> None:
    """A data set that is harder for good does not alarm for good."""
    series = noisy(2.0, 300) + noisy(4.0, 1000)
    found = findings(feed(RobustDivergence(), "loss", series))
    assert found[0] < 320
    assert found[-1] < 700


@pytest.mark.parametrize("seed", range(5))
def test_healthy_and_signed_losses_are_silent(seed: int) -> None:
    """Falling, noisy, negative, near-zero and constant losses do not diverge."""
    around = [x - 1.0 for x in noisy(1.0, 2000, 0.3, seed)]
    below = [-x for x in noisy(5.0, 2000, 0.1, seed)]
    for series in (
        falling(10.0, 2.0, 2000),
        noisy(2.0, 2000, 0.2, seed),
        around,
        below,
        [0.0] * 99,
    ):
        assert not findings(feed(RobustDivergence(), "loss", series))


def test_a_signed_loss_that_leaves_its_level_diverges() -> None:
    """Differences in units of the usual span stand in for ratios."""
    series = [x - 2.0 for x in noisy(2.0, 300)] + [float(step) for step in range(50)]
    assert findings(feed(RobustDivergence(), "loss", series))[0] > 300


def test_non_finite_losses_change_nothing() -> None:
    """They neither add evidence nor take any away."""
    detector = RobustDivergence()
    assert feed(detector, "loss", [NAN, None]) == [WARMING_UP, WARMING_UP]
    feed(detector, "loss", noisy(2.0, 100))
    before = detector.state_dict()
    assert feed(detector, "loss", [NAN, INF, None]) == [HEALTHY] * 3
    assert detector.state_dict() == before


def test_a_level_that_becomes_zero_takes_the_evidence_along() -> None:
    """There is nothing to compare with, and nothing to raise over."""
    series = noisy(2.0, 300) + [6.0] * 4 + [0.0] * 600 + [1e-3, 0.0, 5.0]
    assert not [
        place for place in findings(feed(RobustDivergence(), "loss", series)) if place > 310
    ]
