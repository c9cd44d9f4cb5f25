# SPDX-License-Identifier: Apache-2.0
"""From the rows of devices to histograms."""

from __future__ import annotations

from itertools import pairwise
from math import inf, nan

import pytest

from training_exporter.layers.histograms import (
    COLUMNS,
    HIGHEST,
    LIMITS,
    LOWEST,
    NON_FINITE,
    SIDE,
    RawHistograms,
)

ONE = LIMITS.index(1.25)
"""The bucket from 1 to 1.25."""


def row(counts: dict[int, float], total: float, squares: float, least: float, greatest: float):  # type: ignore[no-untyped-def]
    numbers = [0.0] * COLUMNS
    for place, count in counts.items():
        numbers[place] = count
    numbers[-4:] = [total, squares, least, greatest]
    return numbers


def test_the_buckets_follow_each_other() -> None:
    """From the largest negative numbers over one around 0 to the largest positive ones."""
    assert len(LIMITS) == NON_FINITE
    assert all(before < after for before, after in pairwise(LIMITS))
    assert LIMITS[SIDE - 1 : SIDE + 1] == (-(2.0**LOWEST), 2.0**LOWEST)
    assert LIMITS[-1] == 2.0**HIGHEST
    assert LIMITS[ONE - 1 : ONE + 4] == (1.0, 1.25, 1.5, 1.75, 2.0)


def test_the_loss_scale_is_taken_out_of_gradients_alone() -> None:
    """Of the borders too."""
    one = row({ONE: 3.0, ONE + 2: 1.0}, 5.0, 8.0, 1.0, 1.6)
    found = RawHistograms({"L0": [one]}, {"L0": [one]}, 4.0, step=7, timestamp=9.0).read()

    assert (found.step, found.timestamp) == (7, 9.0)
    assert found.gradients["L0"] == (
        4.0, 0.25, 0.4, 1.25, 0.5, (1.25 / 4, 1.5 / 4, 1.75 / 4), (3.0, 0.0, 1.0),
    )  # fmt: skip
    assert found.parameters["L0"].limits == (1.25, 1.5, 1.75)
    assert found.parameters["L0"].sum == 5.0


@pytest.mark.parametrize("scale", [None, 0.0, inf, nan, -1.0])
def test_a_scale_that_is_not_known(scale: float | None) -> None:
    """Leaves the gradients out, which would be wrong, and the weights in."""
    one = row({ONE: 3.0}, 3.0, 3.0, 1.0, 1.0)
    found = RawHistograms({"L0": [one]}, {"L0": [one]}, scale).read()

    assert found.gradients == {}
    assert list(found.parameters) == ["L0"]


def test_a_layer_on_two_devices_is_one() -> None:
    """A part without a finite value says nothing of the extremes."""
    rows = [
        row({ONE: 1.0}, 1.0, 1.0, 1.0, 1.0),
        row({NON_FINITE: 5.0}, 0.0, 0.0, inf, -inf),
        row({ONE - 8: 2.0}, 0.6, 0.2, 0.25, 0.35),
    ]
    histogram = RawHistograms({"L0": rows}, {}, 1.0).read().gradients["L0"]

    assert histogram[:5] == (3.0, 0.25, 1.0, 1.6, 1.2)
    assert histogram.counts == (2.0, *[0.0] * 7, 1.0)


def test_a_layer_without_a_finite_value_is_left_out() -> None:
    """There is nothing to draw."""
    lost = row({NON_FINITE: 5.0}, 0.0, 0.0, inf, -inf)

    assert RawHistograms({"L0": [lost]}, {}, 1.0).read().gradients == {}
