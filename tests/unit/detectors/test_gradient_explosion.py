# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from tests.unit.detectors.feed import INF, NAN, feed, findings, noisy
from training_exporter.detectors import (
    HEALTHY,
    WARMING_UP,
    Finding,
    RobustGradientExplosion,
    TextbookGradientExplosion,
)


@pytest.mark.parametrize(("norm", "fires"), [(5.0, False), (5.01, True)])
def test_textbook_at_the_edge_of_alpha(norm: float, fires: bool) -> None:
    """Five times the average of the steps before is legal, more is not."""
    verdicts = feed(TextbookGradientExplosion(), "grad_norm", [1.0] * 50 + [norm])
    assert verdicts[-1] == (Finding(5.01, pytest.approx(5.0)) if fires else HEALTHY)


def test_textbook_absolute_bound() -> None:
    """A norm above the bound is an explosion from the first step on, however usual it is."""
    verdicts = feed(TextbookGradientExplosion(), "grad_norm", [101.0, 100.0, 101.0])
    assert verdicts == [Finding(101.0, 100.0), HEALTHY, Finding(101.0, 100.0)]


def test_textbook_first_step_warms_up() -> None:
    """Without an average there is only the bound."""
    assert feed(TextbookGradientExplosion(), "grad_norm", [99.0]) == [WARMING_UP]


def test_robust_finds_explosions_at_any_scale() -> None:
    """The same run a million times larger has the same findings, and only those."""
    for scale in (1e-6, 1.0, 1e6):
        series = [scale * x for x in noisy(1.0, 300, 0.3)]
        series[200] = scale * 30.0
        verdicts = feed(RobustGradientExplosion(), "grad_norm", series)
        assert findings(verdicts) == [200]


def test_robust_level_is_not_lifted_by_the_explosion() -> None:
    """Norms that stay high stay found, until they fill half of the window."""
    series = noisy(1.0, 300, 0.1) + [40.0] * 60
    assert findings(feed(RobustGradientExplosion(), "grad_norm", series)) == [*range(300, 360)]


def test_robust_is_ready_soon_after_a_resume() -> None:
    """A run that explodes on its third step is found on its third step."""
    assert findings(feed(RobustGradientExplosion(), "grad_norm", [2.3, 0.9, 14.9])) == [2]


@pytest.mark.parametrize("detector", [TextbookGradientExplosion(), RobustGradientExplosion()])
def test_non_finite_norms_do_not_blind_it(
    detector: TextbookGradientExplosion | RobustGradientExplosion,
) -> None:
    """They leave the last quiet verdict, and an explosion after them is found."""
    feed(detector, "grad_norm", noisy(1.0, 100))
    assert feed(detector, "grad_norm", [INF, NAN, None]) == [HEALTHY] * 3
    assert findings(feed(detector, "grad_norm", [1.0, 50.0])) == [1]
