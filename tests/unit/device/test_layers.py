# SPDX-License-Identifier: Apache-2.0
"""The layer pass: right numbers, nothing changed, nobody waits."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, isnan, nan, sqrt

import pytest
import torch
from torch import nn

from tests.unit.device.late_device import LateDevice
from tests.unit.device.mixture import (
    Mixture,
    backward,
    late,
    one_pass,
    reference,
    references,
    same,
    trained,
)
from training_exporter.device.layers import LayerPass, reason_against


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(1)
    return Mixture()


@pytest.mark.parametrize("behind", [False, True])
def test_norms_are_those_of_a_float64_reference(model: nn.Module, behind: bool) -> None:
    """Of gradients and weights: mixed dtypes, an idle expert without gradient, a tied weight once,
    a frozen layer not at all; read at once or from a device that is behind."""
    backward(model)
    device = LateDevice()
    layers = late(device, model) if behind else LayerPass(model)
    layers.before_clipping(7)
    first = layers.collect()
    device.advance(device.behind)
    (norms,) = first or layers.collect()
    named = trained(model)

    assert first == [] if behind else first
    assert norms.step == 7
    assert norms.parameters.names == tuple(name for name, _ in named)
    assert not any("frozen" in name or "head" in name for name in norms.parameters.names)
    assert same(norms.gradients, references(model, gradients=True))
    assert same(norms.weights, references(model, gradients=False))
    assert norms.gradients[norms.parameters.names.index("experts.1.weight")] is None
    assert device.waits == 0


def test_a_gradient_that_is_not_there_has_no_norm(model: nn.Module) -> None:
    """Which ones are missing changes from step to step, as with experts; no value goes astray."""
    device = LateDevice()
    layers = late(device, model)
    parameters = [p for _, p in trained(model)]
    for step, missing in enumerate([0, 3, 5, None]):
        for place, parameter in enumerate(parameters):
            parameter.grad = torch.full_like(parameter, place + 1)
        if missing is not None:
            parameters[missing].grad = None
        layers.before_clipping(step)
        layers.collect()
    device.advance(4)

    for norms, missing in zip(layers.collect(), [0, 3, 5, None], strict=True):
        expected = [(at + 1) * sqrt(p.numel()) for at, p in enumerate(parameters)]
        assert [n for at, n in enumerate(norms.gradients) if at != missing] == pytest.approx(
            [n for at, n in enumerate(expected) if at != missing], rel=1e-6
        )
        assert missing is None or norms.gradients[missing] is None


def test_no_gradients_at_all() -> None:
    """Not an error: weights have norms, gradients have none; a model without parameters neither."""
    norms = one_pass(nn.Linear(2, 2))

    assert norms.gradients == [None, None]
    assert None not in norms.weights
    assert one_pass(nn.Identity()).parameters.names == ()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    """In its own dtype the norm of 1,000 elements of 3,000 would be Inf, or have three digits."""
    model = nn.Linear(1000, 1, bias=False, dtype=dtype)
    model.weight.grad = torch.full_like(model.weight, 3000.0)

    assert one_pass(model).gradients == pytest.approx([reference(model.weight.grad)], rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64])
def test_other_dtypes_keep_their_digits(dtype: torch.dtype) -> None:
    """float64 is not rounded on its way, complex numbers count by their magnitude."""
    model = nn.Module()
    model.weight = nn.Parameter(torch.tensor([3.0, 4.0 + 1e-12], dtype=dtype))
    model.weight.grad = torch.tensor([0.6, 0.8], dtype=dtype)
    if dtype is torch.complex64:
        model.weight.grad = model.weight.grad * 1j
    norms = one_pass(model)

    assert norms.gradients == pytest.approx([1.0], abs=1e-7)
    assert norms.weights[0] == pytest.approx(5 + 8e-13, abs=1e-15 if dtype.is_floating_point else 1)


@pytest.mark.parametrize(("bad", "check"), [(nan, isnan), (inf, lambda norm: norm == inf)])
def test_non_finite_gradients_are_carried(
    model: nn.Module, bad: float, check: Callable[[float], bool]
) -> None:
    """One bad element makes that parameter's norm bad, and no other's."""
    backward(model)
    place = 2
    gradient = trained(model)[place][1].grad
    assert gradient is not None
    gradient.view(-1)[3] = bad
    norms = one_pass(model)

    assert check(norms.gradients[place])
    assert sum(n is not None and not n < inf for n in norms.gradients) == 1


@pytest.mark.parametrize("scale", [1024.0, torch.tensor(1024.0), torch.tensor([1024.0])])
@pytest.mark.parametrize("behind", [False, True])
def test_the_loss_scale_is_taken_out(model: nn.Module, scale: object, behind: bool) -> None:
    """A number or a tensor, which rides along in the row; weights have none."""
    backward(model, 1024.0)
    device = LateDevice()
    layers = late(device, model) if behind else LayerPass(model)
    layers.before_clipping(1, scale)
    norms = layers.collect()
    device.advance(device.behind)
    norms = norms or layers.collect()
    scaled = references(model, gradients=True)

    assert same(norms[0].gradients, [norm and norm / 1024 for norm in scaled])
    assert same(norms[0].weights, references(model, gradients=False))


def test_an_impossible_loss_scale_leaves_no_gradients(model: nn.Module) -> None:
    """A scale of 0 is no number to divide by; a wrong type is the caller's mistake."""
    backward(model)
    layers = LayerPass(model)

    assert set(one_pass(model, 0.0).gradients) == {None}
    with pytest.raises(TypeError):
        layers.before_clipping(1, object())


def test_sparse_gradients() -> None:
    """Repeated indices are added up first."""
    embedding = nn.Embedding(10, 4, sparse=True)
    embedding(torch.tensor([1, 1, 2])).sum().backward()
    assert embedding.weight.grad is not None

    assert same(one_pass(embedding).gradients, [reference(embedding.weight.grad.to_dense())])


def test_training_is_the_same_to_the_bit() -> None:
    """Weights after steps with clipping, with a pass and without; gradients are not touched."""

    def train(watched: bool) -> list[torch.Tensor]:
        torch.manual_seed(1)
        model = Mixture()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        layers = LayerPass(model)
        for step in range(4):
            backward(model)
            if watched:
                layers.before_clipping(step)
            nn.utils.clip_grad_norm_(model.parameters(), 0.01)
            optimizer.step()
            if watched:
                layers.after_step()
                assert len(layers.collect()) == 1
            optimizer.zero_grad()
        return [p.detach() for p in model.parameters()]

    for with_us, without in zip(train(True), train(False), strict=True):
        assert torch.equal(with_us, without)


def test_a_thawed_layer_is_seen(model: nn.Module) -> None:
    """Gradual unfreezing: the table is made anew, while a pass of the old one is on its way."""
    backward(model)
    device = LateDevice()
    layers = late(device, model)
    layers.before_clipping(1)
    layers.collect()
    model.frozen.requires_grad_(True)
    backward(model)
    layers.before_clipping(2)
    layers.collect()
    device.advance(2)
    before, after = layers.collect()

    assert set(after.parameters.names) - set(before.parameters.names) == {
        "frozen.weight", "frozen.bias",
    }  # fmt: skip
    assert same(after.gradients, references(model, gradients=True))


def test_a_layer_that_is_frozen_later_has_no_gradient_any_more(model: nn.Module) -> None:
    """What is left in .grad from before is not this step's."""
    backward(model)
    layers = LayerPass(model)
    layers.before_clipping(1)
    model.narrow.requires_grad_(False)
    (before,) = layers.collect()
    layers.before_clipping(2)
    (after,) = layers.collect()
    place = before.parameters.names.index("narrow.weight")

    assert before.gradients[place] is not None
    assert after.gradients[place] is None


def test_a_model_that_moves_is_read_where_it_is(model: nn.Module) -> None:
    """Another dtype, or another device, after the first pass."""
    backward(model)
    layers = LayerPass(model)
    layers.before_clipping(1)
    layers.collect()
    model.double()
    layers.before_clipping(2)
    (norms,) = layers.collect()

    assert same(norms.gradients, references(model, gradients=True), rel=1e-12)


def test_deepspeed_is_said() -> None:
    """Gradients are not in .grad there; a model that can be read has no reason against it."""
    model = nn.Linear(2, 2)
    engine = type("DeepSpeedOptimizerWrapper", (), {})()
    plain = reason_against(model.named_parameters(), torch.optim.SGD(model.parameters()))
    wrapped = reason_against(model.named_parameters(), engine)
    model.weight.ds_id = 1

    assert plain == ""
    assert "DeepSpeed" in wrapped
    assert "DeepSpeed" in reason_against(model.named_parameters())
    model.requires_grad_(False)
    assert reason_against(nn.Linear(2, 2).requires_grad_(False).named_parameters()) == (
        "no parameter is trained"
    )


def test_weights_are_read_now_and_then() -> None:
    """Gradients in each pass; weights and changes in the first and every n-th, and in between they
    are the ones of that step, together."""
    model = nn.Linear(1, 1, bias=False)
    layers = LayerPass(model, full_every=3)
    seen = []
    for step in range(1, 6):
        model.weight.data.fill_(float(step))
        model.weight.grad = torch.full((1, 1), 10.0 * step)
        layers.before_clipping(step)
        model.weight.data.add_(step / 8)
        layers.after_step()
        seen += layers.collect()

    assert [norms.step for norms in seen] == [1, 2, 3, 4, 5]
    assert [norms.gradients for norms in seen] == [[10.0], [20.0], [30.0], [40.0], [50.0]]
    assert [norms.weights for norms in seen] == [[1.0]] * 3 + [[4.0]] * 2
    assert [norms.changes for norms in seen] == [[0.125]] * 3 + [[0.5]] * 2
    assert [norms.weights_step for norms in seen] == [1, 1, 1, 4, 4]
