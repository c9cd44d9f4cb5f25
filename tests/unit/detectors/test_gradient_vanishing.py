# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from tests.unit.detectors.feed import NAN, falling, feed, findings, noisy
from training_exporter.detectors import (
    HEALTHY,
    WARMING_UP,
    Finding,
    RobustGradientVanishing,
    TextbookGradientVanishing,
)


@pytest.mark.parametrize(("norm", "fires"), [(0.0101, False), (0.0099, True)])
def test_textbook_at_the_edge_of_delta(norm: float, fires: bool) -> None:
    """Compared with the norm K steps before."""
    verdicts = feed(TextbookGradientVanishing(), "grad_norm", [1.0] * 100 + [norm])
    assert verdicts[99] is WARMING_UP
    assert verdicts[-1] == (Finding(0.0099, 0.01) if fires else HEALTHY)


def test_textbook_eps_holds_from_the_first_step() -> None:
    """A norm below eps has vanished, whatever came before."""
    assert feed(TextbookGradientVanishing(), "grad_norm", [9e-8])[0] == Finding(9e-8, 1e-7)
    assert feed(TextbookGradientVanishing(), "grad_norm", [1.1e-7])[0] is WARMING_UP


def test_robust_needs_several_in_a_row() -> None:
    """One dip is nothing, five in a row are a vanished gradient."""
    series = noisy(1.0, 200)
    series[150] = 1e-9
    assert not findings(feed(RobustGradientVanishing(), "grad_norm", series))
    verdicts = feed(RobustGradientVanishing(), "grad_norm", noisy(1.0, 200) + [1e-4] * 10)
    assert findings(verdicts) == [*range(204, 210)]


def test_robust_finds_norms_that_are_zero_from_the_start() -> None:
    """A model that gets no gradient at all is found at once."""
    assert findings(feed(RobustGradientVanishing(), "grad_norm", [0.0] * 10)) == [*range(4, 10)]


def test_robust_leaves_the_first_fall_alone() -> None:
    """From 100 to 0.3 over some hundred steps is how training begins."""
    assert not findings(feed(RobustGradientVanishing(), "grad_norm", falling(100.0, 0.3, 2000)))


def test_non_finite_norms_change_nothing() -> None:
    """A NaN neither counts towards a row nor ends it."""
    series = [*noisy(1.0, 200), 1e-4, 1e-4, NAN, 1e-4, None, 1e-4, 1e-4]
    assert findings(feed(RobustGradientVanishing(), "grad_norm", series)) == [206]
