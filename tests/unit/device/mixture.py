# SPDX-License-Identifier: Apache-2.0
"""A small model with all that is special about parameters, and layer passes over it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from tests.unit.device.late_device import LateDevice
from training_exporter.device.layers import LayerPass
from training_exporter.device.rows import AsyncVectors
from training_exporter.layers.readings import ParameterNorms


class Mixture(nn.Module):
    """Experts of which one is idle, a frozen layer, a tied head, a scalar and several dtypes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 8)
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.narrow = nn.Linear(8, 8, dtype=torch.bfloat16)
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.head = nn.Linear(8, 16, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.frozen(self.embed(tokens))
        hidden = self.experts[0](hidden) + self.experts[2](hidden)
        return self.head(self.narrow(hidden.bfloat16()).float() * self.scale)


def trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def reference(tensor: torch.Tensor | None) -> float | None:
    """The norm in float64, element by element."""
    return None if tensor is None else tensor.detach().double().square().sum().sqrt().item()


def backward(model: nn.Module, scale: float = 1.0) -> None:
    (model(torch.arange(16)).square().mean() * scale).backward()


def one_pass(model: nn.Module, loss_scale: object = None) -> ParameterNorms:
    layers = LayerPass(model)
    layers.before_clipping(1, loss_scale)
    (norms,) = layers.collect()
    return norms


def late(device: LateDevice, model: nn.Module, **options: int) -> LayerPass:
    """A pass to which every tensor is one of a device that is behind."""

    def open_vectors(_: torch.device, slots: int, columns: int) -> AsyncVectors:
        return AsyncVectors(torch.device("cpu"), slots=slots, columns=columns, backend=device)

    return LayerPass(model, open_vectors=open_vectors, **{"full_every": 1, **options})


def references(model: nn.Module, *, gradients: bool) -> list[float | None]:
    return [reference(p.grad if gradients else p) for _, p in trained(model)]


def same(
    norms: Sequence[float | None], expected: Sequence[float | None], rel: float = 1e-6
) -> bool:
    """Whether the norms are these, None where None is expected."""
    assert [norm is None for norm in norms] == [norm is None for norm in expected]
    known = [norm for norm in expected if norm is not None]
    return known == pytest.approx([norm for norm in norms if norm is not None], rel=rel)
