# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from math import pi, sin

import pytest

from tests.unit.detectors.feed import NAN, falling, feed, findings, noisy
from training_exporter.detectors import HEALTHY, WARMING_UP, Finding, LossOscillation


@pytest.mark.parametrize("period", [2, 5, 16])
def test_large_swings_are_found(period: int) -> None:
    """From one step to the next or over several, once they last three blocks."""
    swing = [2.0 + 1.5 * sin(pi / 4 + 2 * pi * step / period) for step in range(200)]
    verdicts = feed(LossOscillation(), "loss", noisy(2.0, 320) + swing)
    found = findings(verdicts)
    assert found[0] == 320 + 95
    verdict = verdicts[found[0]]
    assert isinstance(verdict, Finding)
    assert verdict.value > verdict.threshold == 0.5


def test_noise_trends_steps_and_spikes_are_silent() -> None:
    """What moves the loss once is no oscillation, nor is the noise of a healthy run."""
    spikes = noisy(2.0, 640)
    spikes[::20] = [9.0] * 32
    for series in (
        noisy(2.0, 640, 0.2),
        falling(20.0, 0.5, 640),
        noisy(2.0, 320) + noisy(9.0, 320),
        spikes,
    ):
        assert not findings(feed(LossOscillation(), "loss", series))


def test_losses_near_zero_or_of_either_sign_are_silent() -> None:
    """Noise around the end of a run, or around zero, is not relative to anything."""
    ending = falling(5.0, 0.01, 640) + [abs(x) for x in noisy(0.01, 640, 0.9)]
    around = [x - 1.0 for x in noisy(1.0, 640, 0.5)]
    for series in (ending, around, [0.0] * 320):
        assert not findings(feed(LossOscillation(), "loss", series))


def test_it_is_ready_after_three_blocks_and_ignores_nan() -> None:
    """A NaN is no step."""
    detector = LossOscillation()
    assert feed(detector, "loss", [1.0] * 95)[-1] is WARMING_UP
    assert feed(detector, "loss", [NAN, None]) == [WARMING_UP, WARMING_UP]
    assert feed(detector, "loss", [1.0])[-1] is HEALTHY
