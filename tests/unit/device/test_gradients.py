# SPDX-License-Identifier: Apache-2.0
"""The global norm of the gradients."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf, isinf, isnan, nan

import pytest
import torch
from torch import nn

from tests.sync_audit import SyncAudit
from training_exporter.device.gradients import global_norm
from training_exporter.device.recorder import StepRecorder


def parameter(gradient: torch.Tensor | None, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    made = nn.Parameter(torch.zeros(2, dtype=dtype))
    if gradient is not None:
        made = nn.Parameter(torch.zeros(gradient.shape, dtype=gradient.dtype))
        made.grad = gradient
    return made


def value(norm: torch.Tensor | None) -> float:
    assert norm is not None
    assert norm.shape == ()
    return norm.item()


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(3)
    layers = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
    layers(torch.randn(5, 8)).square().sum().backward()
    return layers


def test_it_is_the_norm_that_torch_clips_by(model: nn.Module) -> None:
    """The same number as the pre-clip total norm, and the gradients stay as they are."""
    before = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    norm = value(global_norm(model.parameters()))
    after = [p.grad for p in model.parameters() if p.grad is not None]

    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert norm == pytest.approx(nn.utils.clip_grad_norm_(model.parameters(), 1.0).item())


def test_no_gradient_is_no_norm() -> None:
    """None, not zero, for no parameters and for parameters nothing flowed to."""
    assert global_norm([]) is None
    assert global_norm([parameter(None), parameter(None)]) is None
    assert global_norm(nn.Identity().parameters()) is None


def test_parameters_without_gradient_are_passed_over() -> None:
    """Frozen layers and idle experts add nothing."""
    assert value(global_norm([parameter(None), parameter(torch.tensor([3.0, 4.0]))])) == 5.0


def test_one_parameter_will_do() -> None:
    """As in torch, a single tensor is no list of its rows."""
    assert value(global_norm(parameter(torch.tensor([3.0, 4.0])))) == 5.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_does_not_overflow(dtype: torch.dtype) -> None:
    """1,000 gradients of 3,000 have a norm that float16 cannot hold."""
    norm = global_norm([parameter(torch.full((1000,), 3000.0, dtype=dtype))])

    assert norm is not None
    assert norm.dtype is torch.float32
    assert value(norm) == pytest.approx(3000 * 1000**0.5, rel=5e-3)


def test_dtypes_may_be_mixed() -> None:
    """Each is measured in its own precision, and the widest carries the total."""
    norm = global_norm(
        [
            parameter(torch.tensor([2.0], dtype=torch.bfloat16)),
            parameter(torch.tensor([3.0], dtype=torch.float64)),
            parameter(torch.tensor([6.0])),
        ]
    )

    assert norm is not None
    assert norm.dtype is torch.float64
    assert value(norm) == 7.0


@pytest.mark.parametrize("bad", [nan, inf])
def test_non_finite_gradients_show(bad: float) -> None:
    """One bad element is enough."""
    norm = value(global_norm([parameter(torch.tensor([1.0])), parameter(torch.tensor([1.0, bad]))]))

    assert isnan(norm) if isnan(bad) else isinf(norm)


def test_sparse_gradients_are_summed_up_first() -> None:
    """An embedding's gradient names a row once per token; its norm is that of the sums."""
    embedding = nn.Embedding(10, 2, sparse=True)
    dense = nn.Embedding.from_pretrained(embedding.weight.detach().clone(), freeze=False)
    for layer in (embedding, dense):
        layer(torch.tensor([1, 1, 1, 7])).sum().backward()

    assert value(global_norm(embedding.parameters())) == pytest.approx(
        value(global_norm(dense.parameters()))
    )


def test_it_is_no_sync(model: nn.Module) -> None:
    """Nothing is brought to the host, however many groups there are."""
    extra = parameter(torch.ones(3, dtype=torch.float64))
    with SyncAudit() as audit:
        global_norm([*model.parameters(), extra])

    assert audit.syncs == []


def test_it_carries_no_graph(model: nn.Module) -> None:
    """With `create_graph=True` gradients have a graph; a number to look at must not keep it."""
    loss = model(torch.randn(5, 8)).square().sum()
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(loss, parameters, create_graph=True)
    for p, gradient in zip(parameters, gradients, strict=True):
        p.grad = gradient
    norm = global_norm(parameters)

    assert norm is not None
    assert not norm.requires_grad


class TestDistributed:
    """What one process knows of a tensor that is spread over several."""

    @pytest.fixture
    def mesh(self) -> Iterator[object]:
        distributed = torch.distributed
        distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
        try:
            yield distributed.device_mesh.init_device_mesh("cpu", (1,))
        finally:
            distributed.destroy_process_group()

    def test_replicated_values_are_known(self, mesh: object) -> None:
        """Every process holds the whole, so it can be read without asking the others."""
        from torch.distributed.tensor import DTensor, Replicate

        whole = DTensor.from_local(torch.tensor([3.0, 4.0]), mesh, [Replicate()])
        recorder = StepRecorder()
        recorder.add_loss(DTensor.from_local(torch.tensor(2.0), mesh, [Replicate()]))
        recorder.finish(step=1, timestamp=0.0)

        assert value(global_norm([parameter(whole)])) == 5.0
        assert recorder.completed()[0].loss == 2.0

    def test_parts_are_not(self, mesh: object) -> None:
        """The norm of a shard is not the norm, and a partial sum is not the sum."""
        from torch.distributed.tensor import DTensor, Partial, Shard

        shard = DTensor.from_local(torch.tensor([3.0, 4.0]), mesh, [Shard(0)])
        recorder = StepRecorder()
        recorder.add_loss(1.0)
        recorder.add_loss(DTensor.from_local(torch.tensor(2.0), mesh, [Partial()]))
        recorder.finish(step=1, timestamp=0.0)

        assert global_norm([parameter(torch.tensor([1.0])), parameter(shard)]) is None
        assert recorder.completed()[0].loss is None

    def test_the_norm_of_a_sharded_model_is_known_after_clipping(self, mesh: object) -> None:
        """torch's own clipping has paid for the collective, so what it returns can be recorded."""
        from torch.distributed.tensor import Shard, distribute_tensor

        weight = nn.Parameter(distribute_tensor(torch.zeros(2), mesh, [Shard(0)]))
        weight.grad = distribute_tensor(torch.tensor([3.0, 4.0]), mesh, [Shard(0)])
        recorder = StepRecorder()
        recorder.set_grad_norm(nn.utils.clip_grad_norm_([weight], 1.0))
        recorder.finish(step=1, timestamp=0.0)

        assert recorder.completed()[0].grad_norm == 5.0
