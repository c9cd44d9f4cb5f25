# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from tests.unit.detectors.feed import INF, NAN, feed, findings
from training_exporter.detectors import HEALTHY, WARMING_UP, ClippingExcess, Finding


def test_above_half_of_the_window() -> None:
    """Half of the steps is legal, one more block of clipped ones is not."""
    half = [2.0, 0.5] * 100
    detector = ClippingExcess()
    verdicts = feed(detector, "grad_norm", half, clip_threshold=1.0)
    assert not findings(verdicts)
    assert verdicts[-1] is HEALTHY
    verdicts = feed(detector, "grad_norm", [2.0] * 40, clip_threshold=1.0)
    assert verdicts[-1] == Finding(0.6, 0.5)


def test_a_norm_at_the_threshold_is_not_clipped() -> None:
    """Clipping leaves a norm alone that equals the threshold."""
    assert not findings(feed(ClippingExcess(), "grad_norm", [1.0] * 200, clip_threshold=1.0))


def test_it_heals() -> None:
    """The finding ends when fewer are clipped."""
    detector = ClippingExcess()
    assert findings(feed(detector, "grad_norm", [2.0] * 200, clip_threshold=1.0))
    assert feed(detector, "grad_norm", [0.5] * 120, clip_threshold=1.0)[-1] is HEALTHY


def test_steps_without_clipping_or_norm_do_not_count() -> None:
    """Unknown is not the same as unclipped."""
    detector = ClippingExcess()
    assert feed(detector, "grad_norm", [2.0] * 500)[-1] is WARMING_UP
    assert feed(detector, "grad_norm", [NAN, INF, None] * 99, clip_threshold=1.0)[-1] is WARMING_UP
