# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import pytest

from training_exporter.smoothing import Ema

NAN, INF = float("nan"), float("inf")


def test_ema_is_corrected_for_its_start() -> None:
    """A constant is its own average from the first step on."""
    ema = Ema(0.99)
    assert ema.value is None
    for _ in range(3):
        ema.update(5.0)
        assert ema.value == pytest.approx(5.0)


def test_ema_by_hand() -> None:
    """(beta (1 - beta) x1 + (1 - beta) x2) / (1 - beta^2)."""
    ema = Ema(0.9)
    ema.update(1.0)
    ema.update(2.0)
    assert ema.value == pytest.approx((0.09 * 1.0 + 0.1 * 2.0) / (1 - 0.81))


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_ema_ignores_what_is_not_finite(bad: float) -> None:
    """One NaN would blind it for good."""
    ema = Ema(0.5)
    ema.update(bad)
    assert ema.value is None
    ema.update(1.0)
    ema.update(bad)
    assert ema.value == 1.0


@pytest.mark.parametrize("beta", [1.0, -0.1, 1.5, NAN])
def test_ema_refuses_a_beta_outside_its_range(beta: float) -> None:
    """The range is in the message."""
    with pytest.raises(ValueError, match="beta must be at least 0 and below 1, got"):
        Ema(beta)


def test_ema_goes_on_after_a_restart() -> None:
    """Saved and restored it is the same average; an unusable state starts afresh."""
    ema, copy = Ema(0.9), Ema(0.9)
    for x in (1.0, 2.0, 3.0):
        ema.update(x)
    copy.load_state_dict(json.loads(json.dumps(ema.state_dict())))
    assert copy.value == pytest.approx(ema.value)
    ema.update(9.0)
    copy.update(9.0)
    assert copy.value == ema.value
    for unusable in ({}, {"sum": 1.0}, {"sum": NAN, "weight": 0.5}, {"sum": 1.0, "weight": 2.0}):
        copy.load_state_dict(unusable)
        assert copy.value is None


def test_many_at_once_are_the_same_as_one_by_one() -> None:
    """To the last bit, in whatever portions they come."""
    one, other = Ema(0.9), Ema(0.9)
    for x in (1.0, 5.0, 2.0, 8.0):
        one.update(x)

    other.update_all([1.0, 5.0, 2.0])
    other.update_all([])
    other.update_all([8.0])

    assert other.value == one.value


def test_a_copy_goes_its_own_way() -> None:
    """What one takes in is not seen in the other."""
    one = Ema(0.9)
    one.update(1.0)
    one.copy().update(9.0)

    assert one.value == 1.0
