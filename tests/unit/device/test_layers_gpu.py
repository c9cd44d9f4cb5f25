# SPDX-License-Identifier: Apache-2.0
"""The layer pass on a real GPU, under torch's own alarm for everything that waits."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.unit.device.mixture import Mixture, reference, references, same, trained
from training_exporter.device.layers import LayerPass

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def backward(model: nn.Module, scale: float = 1.0) -> None:
    tokens = torch.arange(16, device="cuda")
    (model(tokens).square().mean() * scale).backward()


def waited_for(layers: LayerPass, steps: int) -> None:
    """All passes have arrived, in order."""
    torch.cuda.synchronize()
    assert [norms.step for norms in layers.collect()] == list(range(steps))


def test_it_finds_what_a_float64_reference_finds_and_never_waits() -> None:
    """Gradients without the loss scale, weights, and what a fused step did to them."""
    torch.manual_seed(0)
    model = Mixture().cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    scale = torch.tensor(8.0, device="cuda")
    layers = LayerPass(model, full_every=1)
    for step in range(2):  # the first one makes the rows, which may wait
        optimizer.zero_grad()
        backward(model, 8.0)
        torch.cuda.synchronize()
        gradients, weights = references(model, gradients=True), references(model, gradients=False)
        before = [p.detach().double().clone() for _, p in trained(model)]
        torch.cuda.set_sync_debug_mode("error" if step else "default")
        try:
            layers.before_clipping(step, scale)
            optimizer.step()
            layers.after_step()
            arrived = layers.collect()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    norms = (arrived + layers.collect())[-1]
    real = [reference(p.detach() - b) for (_, p), b in zip(trained(model), before, strict=True)]

    assert norms.step == 1
    assert same(norms.gradients, [norm and norm / 8 for norm in gradients])
    assert same(norms.weights, weights)
    assert list(norms.changes) == pytest.approx(real, rel=1e-3, abs=1e-9)


def test_it_does_not_read_before_the_device_is_there() -> None:
    """Behind a long queue of work, a pass arrives late and with the right numbers."""
    model = nn.Linear(64, 64, bias=False, device="cuda")
    model.weight.grad = torch.ones_like(model.weight)
    layers = LayerPass(model)
    layers.before_clipping(0)
    layers.collect(wait=True)
    torch.cuda._sleep(10**9)
    layers.before_clipping(1)
    early = layers.collect()
    torch.cuda.synchronize()
    (norms,) = layers.collect()

    assert early == []
    assert norms.gradients == [64.0]


def test_weights_on_the_cpu_and_on_a_gpu_are_read_together() -> None:
    """As when a part of the model is offloaded."""
    model = nn.ParameterList([torch.full((4,), 2.0), torch.full((4,), 3.0, device="cuda")])
    for parameter in model:
        parameter.grad = parameter.detach().clone()
    layers = LayerPass(model)
    layers.before_clipping(1, torch.tensor(2.0, device="cuda"))
    (norms,) = layers.collect(wait=True)

    assert norms.weights == [4.0, 6.0]
    assert norms.gradients == [2.0, 3.0]


@pytest.mark.parametrize("passes_before", [0, 1])
def test_nothing_is_read_while_a_graph_is_captured(passes_before: int) -> None:
    """The capture goes on unharmed, also where it comes first."""
    model = nn.Linear(8, 8, device="cuda")
    layers = LayerPass(model)
    for step in range(passes_before):
        layers.before_clipping(step)
        layers.collect()
    values = torch.ones(8, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        layers.before_clipping(2)
        layers.after_step()
        during = layers.collect()
        values.mul_(2)
    graph.replay()
    torch.cuda.synchronize()

    assert during == []
    assert layers.dropped == 1
    assert values.tolist() == [2.0] * 8


def test_weights_are_the_same_to_the_bit() -> None:
    """After steps with clipping, with a pass and without."""

    def train(watched: bool) -> list[torch.Tensor]:
        torch.manual_seed(1)
        model = Mixture().cuda()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        layers = LayerPass(model)
        for step in range(5):
            backward(model)
            if watched:
                layers.before_clipping(step)
            nn.utils.clip_grad_norm_(model.parameters(), 0.01)
            optimizer.step()
            if watched:
                layers.after_step()
            optimizer.zero_grad()
        if watched:
            waited_for(layers, 5)
        return [p.detach() for p in model.parameters()]

    for with_us, without in zip(train(True), train(False), strict=True):
        assert torch.equal(with_us, without)
