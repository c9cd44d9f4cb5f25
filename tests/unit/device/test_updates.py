# SPDX-License-Identifier: Apache-2.0
"""The change that a step makes to the weights, beside the weights before and after it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
from torch import nn
from transformers import Adafactor

from tests.unit.device.late_device import LateDevice
from tests.unit.device.mixture import Mixture, backward, late, one_pass, trained
from training_exporter.device.layers import LayerPass
from training_exporter.device.sampling import sampleable
from training_exporter.device.updates import ChangeSample

Make = Callable[[Iterable[object]], torch.optim.Optimizer]

OPTIMIZERS: dict[str, Make] = {
    "SGD": lambda groups: torch.optim.SGD(groups, lr=0.1),
    "SGD with momentum": lambda groups: torch.optim.SGD(
        groups, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01
    ),
    "AdamW": lambda groups: torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.1),
    "AdamW, fused": lambda groups: torch.optim.AdamW(groups, lr=1e-3, fused=True),
    "AdamW, tensor rate": lambda groups: torch.optim.AdamW(groups, lr=torch.tensor(1e-3)),
    "Adam, amsgrad": lambda groups: torch.optim.Adam(groups, amsgrad=True, weight_decay=0.1),
    "Adafactor": lambda groups: Adafactor(groups, lr=1e-3, relative_step=False),
}


def with_two_groups(model: nn.Module) -> list[dict[str, object]]:
    parameters = [p for _, p in trained(model)]
    return [{"params": parameters[:3], "lr": 0.01, "weight_decay": 0.2}, {"params": parameters[3:]}]


def measured_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, layers: LayerPass
) -> tuple[list[float | None], list[float]]:
    """A step with clipping: what the pass says of it, and what it did."""
    optimizer.zero_grad()
    backward(model)
    layers.before_clipping(1)
    nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    before = [p.detach().double().clone() for _, p in trained(model)]
    optimizer.step()
    layers.after_step()
    (norms,) = layers.collect()
    after = [p.detach().double() for _, p in trained(model)]
    return list(norms.changes), [(b - a).norm().item() for a, b in zip(before, after, strict=True)]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_is_what_the_optimiser_did(name: str) -> None:
    """To float32's rounding, for every step, clipped, with groups of their own rates and decay;
    the bfloat16 layer's change is what rounding left of it."""
    torch.manual_seed(2)
    model = Mixture()
    optimizer = OPTIMIZERS[name](with_two_groups(model))
    layers = LayerPass(model, full_every=1)
    for _ in range(3):
        found, real = measured_step(model, optimizer, layers)

        assert found == pytest.approx(real, rel=1e-3, abs=1e-9)
        assert max(real) > 0


def test_a_skipped_step_has_changed_nothing() -> None:
    """As after an overflow in fp16: the weights are as they were."""
    model = Mixture()
    backward(model)
    layers = LayerPass(model, full_every=1)
    layers.before_clipping(1)
    layers.after_step()
    (norms,) = layers.collect()

    assert set(norms.changes) == {0.0}


def test_without_a_look_afterwards_there_is_no_change() -> None:
    """None, not zero; the next pass starts anew. The same when nothing is to be compared."""
    model = Mixture()
    backward(model)
    layers = LayerPass(model, full_every=1)
    layers.before_clipping(1)
    layers.before_clipping(2)
    trained(model)[0][1].data.add_(1.0)
    layers.after_step()
    first, second = layers.collect()
    unsampled = LayerPass(model, sample=0)
    unsampled.before_clipping(1)
    unsampled.after_step()
    (third,) = unsampled.collect()

    assert set(first.changes) == set(third.changes) == {None}
    assert second.changes[0] == pytest.approx(trained(model)[0][1].numel() ** 0.5)


def test_a_step_that_was_not_due_is_not_read() -> None:
    """After a pass has been collected, later steps have nothing to compare with."""
    model = Mixture()
    backward(model)
    layers = LayerPass(model, full_every=1)
    layers.after_step()
    layers.before_clipping(1)
    layers.collect()
    layers.after_step()

    assert layers.collect() == []


def test_weights_in_other_memory_have_no_change() -> None:
    """What replaces a weight's memory leaves nothing to compare; that is no change of 0."""
    model = nn.Linear(2, 2)
    layers = LayerPass(model, full_every=1)
    layers.before_clipping(1)
    model.weight.data = model.weight.data + 1
    layers.after_step()
    (norms,) = layers.collect()

    assert norms.changes == [None, None]


def test_a_change_arrives_with_its_pass() -> None:
    """From a device that is behind, in the same row as the norms."""
    model = Mixture()
    backward(model)
    device = LateDevice()
    layers = late(device, model)
    layers.before_clipping(1)
    for _, parameter in trained(model):
        parameter.data.add_(1.0)
    layers.after_step()
    layers.collect()
    assert device.behind == 1
    device.advance()
    (norms,) = layers.collect()

    assert norms.changes == pytest.approx([p.numel() ** 0.5 for _, p in trained(model)], rel=1e-2)


def changes(tensors: list[torch.Tensor], most: int, change: Callable[[], object]) -> list[float]:
    """Norms of a change as a sample of so many elements has them."""
    sample = ChangeSample(tensors, most)
    assert sum(sample._sizes) <= most
    sample.take(tensors)
    change()
    norms = sample.change(tensors)
    assert norms is not None
    found = dict(zip(sample.order, torch.cat(norms).tolist(), strict=True))
    factors = dict(zip(sample.order, sample.factors, strict=True))
    return [found[at] * factors[at] for at in range(len(tensors))]


def test_a_sample_stands_for_a_large_tensor() -> None:
    """With some thousand of 1,000,000 elements the norm is right to some per cent, small tensors
    are exact, and what is kept is bounded."""
    torch.manual_seed(4)
    tensors = [torch.zeros(7), torch.zeros(1000, 1000), torch.zeros(100, 120), torch.zeros(5, 1)]
    moves = [torch.randn_like(tensor) * torch.rand(tensor.shape[-1]) for tensor in tensors]
    found = changes(tensors, 10_000, lambda: torch._foreach_add_(tensors, moves))
    real = [move.norm().item() for move in moves]

    assert found[1:3] == pytest.approx(real[1:3], rel=0.04)
    assert found[::3] == pytest.approx(real[::3], rel=1e-6)


@pytest.mark.parametrize("part", [64, 2])
def test_a_sample_takes_all_columns(part: int) -> None:
    """A distance that divides the row's length would see the same few columns in each row."""
    weight = torch.zeros(512, 256)
    found = changes([weight], weight.numel() // part, lambda: weight[:, 1].fill_(1.0))

    assert found == [pytest.approx(512**0.5, rel=0.3)]


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        (torch.zeros(2, 3), True),
        (torch.zeros(2, 3).t(), True),
        (torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last), True),
        (torch.zeros(0, 3), True),
        (torch.zeros(4, 6)[:, ::2], False),
        (torch.zeros(3, 1).expand(3, 4), False),
        (torch.zeros(3, dtype=torch.int64), False),
    ],
)
def test_only_dense_memory_is_sampled(tensor: torch.Tensor, expected: bool) -> None:
    """Whatever the order of its dimensions; with gaps, elements of others would be read."""
    assert sampleable(tensor) is expected


def test_a_weight_with_gaps_is_left_out() -> None:
    """Its norms are read all the same."""
    model = nn.Linear(4, 4)
    model.view = nn.Parameter(torch.ones(4, 6)[:, ::2])
    layers = LayerPass(model, full_every=1)
    layers.before_clipping(1)
    layers.after_step()
    (norms,) = layers.collect()
    place = norms.parameters.names.index("view")

    assert norms.changes[place] is None
    assert norms.weights[place] == pytest.approx(12**0.5)
    assert one_pass(model).weights == norms.weights
