# SPDX-License-Identifier: Apache-2.0
"""Keeping the batches of the last steps, by reference and within bounds."""

from __future__ import annotations

import gc
from collections import OrderedDict
from typing import Any
from weakref import ref

import pytest
import torch

from training_exporter.device import kept_inputs
from training_exporter.device.kept_inputs import KeptInputs, KeptStep


@pytest.fixture
def on_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """All tensors of this machine count as those of an accelerator."""
    monkeypatch.setattr(kept_inputs, "_in_host_memory", lambda tensor: False)


def kept(inputs: KeptInputs, step: int) -> KeptStep:
    found = inputs.of(step)
    assert found is not None
    return found


def names(inputs: Any) -> list[str]:
    keeper = KeptInputs()
    keeper.keep(inputs)
    return [name for name, _ in keeper.current().named()]


def run(keeper: KeptInputs, steps: range, elements: int = 256) -> None:
    for step in steps:
        keeper.keep({"ids": torch.full((elements,), step)})
        keeper.close_step(step)


def test_it_keeps_the_tensor_itself() -> None:
    """No copy, and under the step it belongs to."""
    keeper, ids = KeptInputs(), torch.arange(3)
    keeper.keep({"ids": ids}, indices=[4, 9])
    keeper.close_step(7)
    ((name, tensor),) = kept(keeper, 7).named()
    assert name == "ids"
    assert tensor is ids
    assert kept(keeper, 7).indices == [4, 9]
    assert keeper.of(6) is None


def test_names_follow_the_structure() -> None:
    """Mappings, tuples, lists, a bare tensor; what is no tensor is passed over."""
    one = torch.ones(1)
    assert names(one) == ["input"]
    assert names({"a": one, "b": {"c": one}, "n": 3, "t": "x"}) == ["a", "b.c"]
    assert names(OrderedDict(a=(one, [one]))) == ["a[0]", "a[1][0]"]
    assert names((one, {"y": one})) == ["[0]", "[1].y"]
    assert names(None) == []


def test_micro_batches_are_told_apart() -> None:
    """Only where there are several."""
    keeper = KeptInputs()
    keeper.keep({"x": torch.ones(1)}, indices=[1])
    assert [name for name, _ in keeper.current().named()] == ["x"]
    keeper.keep({"x": torch.ones(1)}, indices=[2])
    assert [name for name, _ in keeper.current().named()] == [
        "micro-batch 1, x",
        "micro-batch 2, x",
    ]
    assert keeper.current().indices == [1, 2]


def test_what_a_loss_pops_from_the_inputs_stays_known() -> None:
    """A compute_loss may take the labels out of the mapping."""
    keeper, inputs = KeptInputs(), {"labels": torch.ones(1)}
    keeper.keep(inputs)
    inputs.pop("labels")
    assert [name for name, _ in keeper.current().named()] == ["labels"]


@pytest.mark.usefixtures("on_device")
def test_it_is_bounded_in_bytes() -> None:
    """256 whole numbers are 2 KiB: four steps of them fit into 8 KiB."""
    keeper = KeptInputs(most_bytes=8 << 10, most_steps=100)
    run(keeper, range(1, 20))
    assert [step for step in range(1, 20) if keeper.of(step)] == [16, 17, 18, 19]


@pytest.mark.usefixtures("on_device")
def test_it_is_bounded_in_steps() -> None:
    """However small they are; and what is let go of is freed."""
    keeper = KeptInputs(most_steps=3)
    tensor = torch.ones(1)
    gone = ref(tensor)
    keeper.keep(tensor)
    keeper.close_step(1)
    del tensor
    run(keeper, range(2, 4))
    assert gone() is not None
    run(keeper, range(4, 5))
    gc.collect()
    assert gone() is None


@pytest.mark.usefixtures("on_device")
def test_a_batch_that_is_too_large_is_not_kept() -> None:
    """And says so; the steps before it stay."""
    keeper = KeptInputs(most_bytes=1 << 20)
    run(keeper, range(1, 3))
    run(keeper, range(3, 4), elements=1 << 18)
    assert kept(keeper, 3).named() == []
    assert kept(keeper, 3).missing == "it takes 2 MiB on the device, and 1 MiB are kept"
    assert kept(keeper, 2).missing is None


@pytest.mark.usefixtures("on_device")
def test_a_view_counts_as_what_it_keeps_alive() -> None:
    """One row of a large tensor keeps all of it."""
    keeper = KeptInputs(most_bytes=1 << 20)
    keeper.keep({"x": torch.zeros(1 << 20)[:2]})
    assert keeper.current().missing is not None


def test_host_memory_is_kept_until_the_next_step() -> None:
    """Batches of loader processes lie in shared memory, of which there is little."""
    keeper, tensor = KeptInputs(), torch.ones(1)
    gone = ref(tensor)
    keeper.keep(tensor)
    keeper.close_step(1)
    del tensor
    assert len(kept(keeper, 1).named()) == 1
    keeper.keep(torch.ones(1))
    gc.collect()

    assert gone() is None
    assert kept(keeper, 1).missing == "it lay in host memory, where only the last one is kept"


def test_host_memory_is_let_go_of_by_a_step_without_inputs() -> None:
    """As in a loop that tells them now and then only."""
    keeper, tensor = KeptInputs(), torch.ones(1)
    gone = ref(tensor)
    keeper.keep(tensor)
    keeper.close_step(1)
    del tensor
    keeper.close_step(2)
    gc.collect()

    assert gone() is None
    assert kept(keeper, 1).missing == "it lay in host memory, where only the last one is kept"
    assert kept(keeper, 2).missing is None


def test_what_was_written_into_is_told_apart() -> None:
    """A static buffer holds the next batch by then."""
    keeper, buffer, other = KeptInputs(), torch.ones(1), torch.ones(1)
    keeper.keep({"x": buffer, "y": other})
    keeper.close_step(1)
    assert len(kept(keeper, 1).named(unchanged=True)) == 2
    buffer.copy_(torch.zeros(1))
    assert [name for name, _ in kept(keeper, 1).named(unchanged=True)] == ["y"]
    assert [name for name, _ in kept(keeper, 1).named()] == ["x", "y"]


def test_tensors_of_inference_mode_can_be_kept() -> None:
    """torch does not count what is written into them."""
    with torch.inference_mode():
        inputs = torch.ones(1)
    keeper = KeptInputs()
    keeper.keep(inputs)
    assert len(keeper.current().named(unchanged=True)) == 1


def test_a_step_of_very_many_tensors_is_not_kept() -> None:
    """References are bounded as well."""
    keeper = KeptInputs()
    keeper.keep({str(number): torch.ones(1) for number in range(300)})
    assert keeper.current().missing == "it has more than 256 tensors"


def test_a_step_that_is_given_up_is_forgotten() -> None:
    """Its micro-batches are not those of the next."""
    keeper = KeptInputs()
    keeper.keep(torch.ones(1))
    keeper.discard()
    keeper.keep({"x": torch.ones(1)})
    assert [name for name, _ in keeper.current().named()] == ["x"]


def test_a_resumed_run_finds_its_own_step() -> None:
    """Of two steps of one number the later counts."""
    keeper = KeptInputs()
    for value in (1.0, 2.0):
        keeper.keep({"x": torch.tensor(value)})
        keeper.close_step(5)
    assert kept(keeper, 5).named()[0][1] == 2.0


@pytest.mark.parametrize("bounds", [{"most_bytes": -1}, {"most_steps": 0}])
def test_bounds_must_make_sense(bounds: dict[str, int]) -> None:
    """The message names both."""
    with pytest.raises(ValueError, match="most_bytes must be at least 0 and most_steps"):
        KeptInputs(**bounds)


def test_a_graph_is_not_kept() -> None:
    """Embeddings that require gradients would keep the weights and activations behind them."""
    keeper, layer = KeptInputs(), torch.nn.Linear(4, 4)
    weight = ref(layer.weight)
    keeper.keep({"embeddings": layer(torch.ones(2, 4))})
    del layer
    gc.collect()

    assert weight() is None
    assert [name for name, _ in keeper.current().named()] == ["embeddings"]


def test_a_sparse_tensor_is_kept_too(on_device: None) -> None:
    """It has no storage whose bytes could be asked for."""
    keeper = KeptInputs()
    keeper.keep({"edges": torch.eye(3).to_sparse()})

    assert [name for name, _ in keeper.current().named()] == ["edges"]
