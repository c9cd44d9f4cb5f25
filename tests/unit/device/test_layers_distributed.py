# SPDX-License-Identifier: Apache-2.0
"""The layer pass on parameters that are spread over processes; one process is enough to see it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from tests.integration.ddp_worker import Collectives
from tests.sync_audit import SyncAudit
from tests.unit.device.mixture import one_pass, reference
from training_exporter.device.layers import LayerPass

pytest.importorskip("torch.distributed.tensor", reason="DTensor came with torch 2.5")


@pytest.fixture
def mesh() -> Iterator[object]:
    from torch.distributed import HashStore, destroy_process_group, init_process_group
    from torch.distributed.device_mesh import init_device_mesh

    init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1,))
    finally:
        destroy_process_group()


def test_shards_are_read_as_they_are_here(mesh: object) -> None:
    """FSDP 2: norms of the local part, said to be that, and no collective."""
    from torch.distributed.fsdp import fully_shard

    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    fully_shard(model[0], mesh=mesh)
    model(torch.randn(4, 8)).square().mean().backward()
    layers = LayerPass(model)
    with Collectives() as collectives, SyncAudit() as audit:
        layers.before_clipping(1)
        for parameter in model.parameters():
            parameter.data.mul_(1.01)
        layers.after_step()
        (norms,) = layers.collect()
    local = [getattr(p.grad, "_local_tensor", p.grad) for p in model.parameters()]

    assert norms.parameters.shards == (True, True, False, False)
    assert norms.parameters.copies == (1, 1, 1, 1)
    assert norms.gradients == pytest.approx([reference(g) for g in local], rel=1e-6)
    ratios = [c / w for c, w in zip(norms.changes, norms.weights, strict=True)]
    assert ratios == pytest.approx([0.01] * 4, rel=1e-4)
    assert (collectives.counts, audit.syncs) == ({}, [])


def test_copies_and_partial_sums(mesh: object) -> None:
    """A replicated parameter is whole; a partial sum is no gradient."""
    from torch.distributed.tensor import DTensor, Partial, Replicate

    model = nn.Module()
    model.a = nn.Parameter(DTensor.from_local(torch.ones(4), mesh, [Replicate()]))
    model.b = nn.Parameter(DTensor.from_local(torch.ones(4), mesh, [Replicate()]))
    model.a.grad = DTensor.from_local(torch.ones(4), mesh, [Replicate()])
    model.b.grad = DTensor.from_local(torch.ones(4), mesh, [Partial()])
    norms = one_pass(model)

    assert norms.parameters.shards == (False, False)
    assert (norms.gradients, norms.unread) == ([2.0, None], {1})


def test_fsdp_1_is_known_by_its_names() -> None:
    """Its shards are ordinary tensors."""
    model = nn.ModuleDict({"_fsdp_wrapped_module": nn.Linear(2, 2)})

    assert one_pass(model).parameters.shards == (True, True)


def test_shards_that_several_hold_are_counted_once() -> None:
    """Two replicas of two shards: four processes, of which this is one."""
    from torch.distributed import destroy_process_group, init_process_group
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate, Shard
    from torch.testing._internal.distributed.fake_pg import FakeStore

    init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    try:
        mesh = init_device_mesh("cpu", (2, 2))
        model = nn.Module()
        for name, placements in (
            ("both", [Shard(0), Shard(0)]),
            ("hybrid", [Replicate(), Shard(0)]),
            ("copied", [Replicate(), Replicate()]),
        ):
            part = DTensor.from_local(torch.ones(4), mesh, placements, run_check=False)
            model.register_parameter(name, nn.Parameter(part))
        model.plain = nn.Parameter(torch.ones(4))
        norms = one_pass(model)
    finally:
        destroy_process_group()

    assert norms.parameters.shards == (True, True, False, False)
    assert norms.parameters.copies == (1, 2, 4, 4)
    assert norms.weights == [2.0] * 4
