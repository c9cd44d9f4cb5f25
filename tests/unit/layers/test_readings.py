# SPDX-License-Identifier: Apache-2.0
"""From the norms of parameters to those of layers."""

from __future__ import annotations

from math import inf, nan, sqrt

import pytest

from training_exporter.catalog import OTHER
from training_exporter.layers.readings import (
    LayerReader,
    LayerReading,
    ParameterNorms,
    ParameterTable,
    first_non_finite,
)

NAMES = ("layers.0.a.weight", "layers.0.b.weight", "layers.1.a.weight", "head.weight")
Values = list["float | None"]


def table(shards: int = 0, copies: tuple[int, ...] = (1, 1, 1, 1)) -> ParameterTable:
    return ParameterTable(NAMES, tuple(at < shards for at in range(4)), copies)


def norms(
    gradients: Values,
    weights: Values | None = None,
    changes: Values | None = None,
    parameters: ParameterTable | None = None,
    unread: frozenset[int] = frozenset(),
) -> ParameterNorms:
    return ParameterNorms(
        5, parameters or table(), gradients, weights or [1.0] * 4, changes or [None] * 4, 4, unread
    )


def read(found: ParameterNorms, most: int = 64) -> LayerReading:
    return LayerReader(grouping="block", most=most).read(found)


def test_a_layers_norm_is_that_of_all_its_elements() -> None:
    """The root of the sum of squares, for gradients, weights and changes; ratios to the weights."""
    reading = read(norms([3.0, 4.0, 1.0, 2.0], [6.0, 8.0, 2.0, 4.0], [0.3, 0.4, 0.2, 0.0]))

    assert (reading.step, reading.weights_step) == (5, 4)
    assert reading.layers == ("L0", "L1", "head")
    assert reading.grad_norm == (5.0, 1.0, 2.0)
    assert reading.param_norm == (10.0, 2.0, 4.0)
    assert reading.update_ratio == pytest.approx((0.05, 0.1, 0.0))
    assert reading.grad_to_param_ratio == (0.5, 0.5, 0.5)
    assert reading.non_finite == (0, 0, 0)
    assert (reading.shards, reading.folded) == ((False,) * 3, 0)


def test_what_there_is_not_is_none() -> None:
    """A layer without any gradient; a change of which a part is not known; weights that are 0."""
    reading = read(norms([3.0, None, None, 2.0], [1.0, 1.0, 1.0, 0.0], [0.3, None, 0.2, 0.1]))

    assert reading.grad_norm == (3.0, None, 2.0)
    assert reading.update_ratio == (None, 0.2, None)
    assert reading.grad_to_param_ratio[1:] == (None, None)


def test_a_gradient_that_could_not_be_read_spoils_its_layer() -> None:
    """A norm over the others would be a wrong one."""
    reading = read(norms([3.0, None, 1.0, 2.0], unread=frozenset({1})))

    assert reading.grad_norm == (None, 1.0, 2.0)
    assert reading.param_norm[0] == pytest.approx(sqrt(2))


def test_a_non_finite_gradient_is_counted_where_it_is() -> None:
    """Even beside one that could not be read; a missing one is not non-finite."""
    reading = read(norms([nan, inf, None, 2.0]))
    spoilt = read(norms([nan, None, 1.0, 2.0], unread=frozenset({1})))

    assert reading.non_finite == (2, 0, 0)
    assert spoilt.non_finite == (1, 0, 0)
    assert reading.first_non_finite() == "L0"


def test_squares_of_shards_add_up_over_processes() -> None:
    """Half of a layer's parameters is sharded over two processes, the other half on both."""
    shared = table(shards=1, copies=(1, 2, 1, 2))
    here = read(norms([3.0, 4.0, 1.0, 2.0], parameters=shared))
    there = read(norms([5.0, 4.0, 1.0, 2.0], parameters=shared))

    assert here.shards == (True, False, False)
    assert here.grad_norm[0] ** 2 + there.grad_norm[0] ** 2 == pytest.approx(9 + 25 + 16)
    assert here.grad_norm[1:] == (1.0, 2.0)  # whole: nothing to add up


def test_layers_beyond_the_cap_are_one() -> None:
    """In "other", with the number of those that are in it."""
    reading = read(norms([3.0, 4.0, 6.0, 8.0]), most=2)

    assert reading.layers == ("L0", OTHER)
    assert reading.grad_norm == (5.0, 10.0)
    assert reading.folded == 2


def test_the_worst_layer_is_the_largest_finite_one() -> None:
    """A NaN is bad in another way, and has a name of its own."""
    assert read(norms([3.0, 4.0, 6.0, 2.0])).worst() == "L1"
    assert read(norms([3.0, 4.0, nan, 2.0])).worst() == "L0"
    assert read(norms([None, None, nan, None])).worst() is None


def test_the_first_non_finite_one_is_the_nearest_to_the_loss() -> None:
    """The backward pass carries a NaN from where it was born to the input."""
    layers = ("embed", "L0", "L1", "head")

    assert first_non_finite(layers, [True, True, False, False]) == "L0"
    assert first_non_finite(layers, [True, True, True, True]) == "head"
    assert first_non_finite(layers, [False] * 4) is None


def test_other_parameters_are_grouped_anew() -> None:
    """A layer that is thawed later has a place of its own."""
    reader = LayerReader(grouping="block")
    reader.read(norms([1.0] * 4))
    fewer = ParameterTable(NAMES[:2], (False,) * 2, (1, 1))

    assert reader.read(ParameterNorms(6, fewer, [1.0] * 2, [1.0] * 2, [None] * 2, 6)).layers == (
        "L0",
    )


def test_a_wrong_grouping_is_refused_at_once() -> None:
    """Not at the first pass, hours later."""
    with pytest.raises(ValueError, match="a grouping is one of"):
        LayerReader(grouping="stage")
