# SPDX-License-Identifier: Apache-2.0
"""The layer pass on a device that is behind the host, as a GPU is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.sync_audit import SyncAudit
from tests.unit.device.late_device import LateDevice
from tests.unit.device.mixture import Mixture, backward, late, trained
from training_exporter.device.layers import LayerPass
from training_exporter.device.rows import AsyncVectors


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(1)
    model = Mixture()
    backward(model)
    return model


def test_nobody_waits(model: nn.Module) -> None:
    """No operation of a pass needs a value on the host."""
    device = LateDevice()
    layers = late(device, model)
    layers.before_clipping(0)  # rows are made
    layers.collect()
    with SyncAudit() as audit:
        layers.before_clipping(1, torch.tensor(2.0))
        for _, parameter in trained(model):
            parameter.data.add_(0.1)
        layers.after_step()
        layers.collect()
        device.advance(2)
        arrived = layers.collect()

    assert audit.syncs == []
    assert device.waits == 0
    assert [norms.step for norms in arrived] == [0, 1]


def test_a_device_that_is_behind_loses_passes_and_counts_them(model: nn.Module) -> None:
    """Nobody waits for a row; later passes are seen again."""
    device = LateDevice()
    layers = late(device, model, slots=2)
    for step in range(3):
        layers.before_clipping(step)
        assert layers.collect() == []
    device.advance(2)
    seen = layers.collect()
    layers.before_clipping(3)
    layers.collect()
    device.advance()

    assert [norms.step for norms in seen + layers.collect()] == [0, 1, 3]
    assert layers.dropped == 1
    assert device.waits == 0


def test_the_last_pass_can_be_waited_for(model: nn.Module) -> None:
    """At the end of training."""
    device = LateDevice()
    layers = late(device, model)
    layers.before_clipping(1)

    assert [norms.step for norms in layers.collect(wait=True)] == [1]
    assert device.waits == 1


def test_nothing_is_read_while_a_graph_is_captured(model: nn.Module) -> None:
    """What is captured is not computed yet, and asking an event would break the capture."""
    device = LateDevice()
    layers = late(device, model)
    layers.before_clipping(1)
    device.graph = True
    layers.after_step()
    layers.before_clipping(2)
    during = layers.collect()
    device.graph = False
    layers.collect()
    device.advance()

    assert during == []
    assert [norms.step for norms in layers.collect()] == [1]
    assert layers.dropped == 1


def test_the_first_pass_is_not_begun_while_a_graph_is_captured(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would make rows, which breaks the capture."""
    layers = late(device := LateDevice(), model)
    with monkeypatch.context() as captured:
        captured.setattr(torch.cuda, "is_initialized", lambda: True)
        captured.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        layers.before_clipping(1)
    layers.before_clipping(2)
    layers.collect()
    device.advance()

    assert [norms.step for norms in layers.collect()] == [2]
    assert layers.dropped == 1


def test_a_failed_pass_gives_its_row_back(model: nn.Module) -> None:
    """Errors do not use the rows up."""
    layers = late(device := LateDevice(), model, slots=1)
    for _ in range(3):
        with pytest.raises(ValueError, match="scale"):
            layers.before_clipping(1, "scale")
    layers.before_clipping(2)
    layers.collect()
    device.advance()

    assert [norms.step for norms in layers.collect()] == [2]


class First(nn.Parameter):
    """A parameter that says it is on another device."""

    device = torch.device("cuda", 0)


class Second(nn.Parameter):
    """A parameter on yet another one."""

    device = torch.device("cuda", 1)


def test_a_model_on_several_devices_is_read_as_one() -> None:
    """A row per device; the pass is there when the last of them is."""
    model = nn.ParameterList(
        kind(torch.full((4,), float(n)))
        for n, kind in enumerate((First, nn.Parameter, Second, First), 1)
    )
    for parameter in model:
        parameter.grad = parameter.detach() * 10
    devices = {First.device: LateDevice(), Second.device: LateDevice()}

    def open_vectors(device: torch.device, slots: int, columns: int) -> AsyncVectors | None:
        cpu = torch.device("cpu")
        if device == cpu:
            return None
        return AsyncVectors(cpu, slots=slots, columns=columns, backend=devices[device])

    layers = LayerPass(model, open_vectors=open_vectors)
    layers.before_clipping(1, torch.tensor(10.0))
    for parameter in model:
        parameter.data.mul_(1.5)
    layers.after_step()
    none_yet = layers.collect()
    devices[First.device].advance()
    one_of_two = layers.collect()
    devices[Second.device].advance()
    (norms,) = layers.collect()

    assert none_yet == one_of_two == []
    assert norms.gradients == pytest.approx([2.0, 4.0, 6.0, 8.0])
    assert norms.weights == pytest.approx([2.0, 4.0, 6.0, 8.0])
    assert norms.changes == pytest.approx([1.0, 2.0, 3.0, 4.0])


def test_one_device_without_a_row_gives_the_others_back() -> None:
    """A pass is there whole or not at all."""
    model = nn.ParameterList([First(torch.ones(1)), Second(torch.ones(1))])
    devices = {First.device: LateDevice(), Second.device: LateDevice()}

    def open_vectors(device: torch.device, slots: int, columns: int) -> AsyncVectors:
        cpu = torch.device("cpu")
        return AsyncVectors(cpu, slots=slots, columns=columns, backend=devices[device])

    layers = LayerPass(model, open_vectors=open_vectors, slots=1)
    layers.before_clipping(1)
    layers.collect()
    devices[First.device].advance()
    layers.collect()
    layers.before_clipping(2)
    layers.collect()
    devices[Second.device].advance()
    first = layers.collect()
    layers.before_clipping(3)
    layers.collect()
    devices[First.device].advance()
    devices[Second.device].advance()

    assert [norms.step for norms in first + layers.collect()] == [1, 3]
    assert layers.dropped == 1


@pytest.mark.parametrize("scale", [torch.tensor(4.0), First(torch.tensor(4.0)), 4.0])
def test_a_loss_scale_from_elsewhere(scale: object) -> None:
    """On the CPU, on another device than the model, or a number."""
    model = nn.ParameterList([Second(torch.ones(4))])
    model[0].grad = torch.full((4,), 8.0)
    device = LateDevice()

    def open_vectors(_: torch.device, slots: int, columns: int) -> AsyncVectors:
        return AsyncVectors(torch.device("cpu"), slots=slots, columns=columns, backend=device)

    layers = LayerPass(model, open_vectors=open_vectors)
    layers.before_clipping(1, scale)
    (norms,) = layers.collect(wait=True)

    assert norms.gradients == [4.0]
