# SPDX-License-Identifier: Apache-2.0
"""Counting NaN and Inf in tensors."""

from __future__ import annotations

from math import inf, nan

import pytest
import torch

from tests.sync_audit import SyncAudit
from tests.unit.device.late_device import LateDevice
from training_exporter.device import counting
from training_exporter.device.counting import CountJob, count_non_finite
from training_exporter.device.parcel import Parcel, open_backend
from training_exporter.forensics.report import MOST_TENSORS, TensorFinding

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def counts(tensor: torch.Tensor) -> tuple[float, float]:
    nans, infs = Parcel(count_non_finite(tensor), None).numbers()
    return nans, infs


def late(device: LateDevice, **named: torch.Tensor) -> CountJob:
    return CountJob(named.items(), open_backend=lambda _: device)


@pytest.mark.parametrize("dtype", [*FLOATS, torch.complex64])
def test_counts_are_exact(dtype: torch.dtype) -> None:
    """In each type, both infinities together, and nothing in a healthy tensor."""
    values = torch.ones(1000).to(dtype)
    assert counts(values) == (0, 0)
    values[::100], values[1], values[2] = nan, inf, -inf
    assert counts(values) == (10, 2)
    assert counts(torch.tensor([inf, -inf]).to(dtype)) == (0, 2)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_eight_bit_floats_are_counted(dtype: torch.dtype) -> None:
    """torch has no isnan for them."""
    assert counts(torch.tensor([1.0, nan, 2.0]).to(dtype)) == (1, 0)


@pytest.mark.parametrize("dtype", FLOATS)
def test_large_values_are_not_infinite(dtype: torch.dtype) -> None:
    """Their sum is, in their own type."""
    assert counts(torch.full((100,), torch.finfo(dtype).max, dtype=dtype)) == (0, 0)


def test_large_tensors_are_looked_at_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever their shape and layout, no part is left out, counted twice, or a copy."""
    monkeypatch.setattr(counting, "CHUNK", 10)
    for shape in [(101,), (7, 13), (3, 1, 40), (1, 33), (11, 2, 5)]:
        plain = torch.ones(shape)
        plain.view(-1)[-1] = plain.view(-1)[1] = nan
        plain.view(-1)[0] = inf
        for values in (plain, plain.transpose(0, -1), plain.expand(2, *shape)[0]):
            parts = list(counting._chunks(values))
            assert len(parts) > 3
            assert max(part.numel() for part in parts) <= max(10, plain.numel() // max(shape))
            assert {p.untyped_storage().data_ptr() for p in parts} == {
                values.untyped_storage().data_ptr()
            }
            assert counts(values) == (2, 1)


def test_a_job_names_what_is_bad() -> None:
    """With shape and type; tensors that cannot be non-finite are checked too, at no cost."""
    job = CountJob(
        [
            ("ids", torch.arange(6)),
            ("good", torch.ones(2, 3)),
            ("bad", torch.tensor([[nan, 1.0, inf]], dtype=torch.bfloat16)),
            ("none", torch.empty(0)),
            ("mask", torch.ones(2, dtype=torch.bool)),
        ]
    )
    seen = job.inspection(7, before_update=True)
    assert job.arrived()
    assert seen.worst == (TensorFinding("bad", (1, 3), "bfloat16", 1, 1),)
    assert (seen.step, seen.checked, seen.bad, seen.before_update) == (7, 5, 1, True)


def test_nothing_to_count_is_known_at_once() -> None:
    """No tensor, or none with data."""
    assert CountJob([]).inspection(1).checked == 0
    assert CountJob([("meta", torch.empty(3, device="meta"))]).inspection(1).checked == 0


def test_the_worst_are_named_and_all_are_counted() -> None:
    """A report stays small when every weight is NaN."""
    named = [(str(size), torch.full((size,), nan)) for size in range(1, 201)]
    seen = CountJob(named).inspection(1)
    assert seen.bad == 200
    assert len(seen.worst) == MOST_TENSORS
    assert [found.nan for found in seen.worst[:3]] == [200, 199, 198]


def test_sparse_gradients_are_looked_at_as_they_are() -> None:
    """Without putting repeated rows together, which would be a sync elsewhere."""
    index = torch.tensor([[0, 0, 2]])
    sparse = torch.sparse_coo_tensor(
        index, torch.tensor([nan, nan, inf]), (4,), check_invariants=True
    )
    (found,) = CountJob([("embedding", sparse)]).findings()
    assert (found.shape, found.nan, found.inf) == ((4,), 2, 1)


def test_of_a_sharded_weight_the_own_part_is_looked_at() -> None:
    """Without asking the other processes; the shape is that of the whole."""
    from torch.distributed.tensor import DTensor, Shard

    distributed = torch.distributed
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = distributed.device_mesh.init_device_mesh("cpu", (1,))
        part = DTensor.from_local(
            torch.tensor([1.0, nan]), mesh, [Shard(0)], shape=(2,), stride=(1,)
        )
        (found,) = CountJob([("weight", part)]).findings()
    finally:
        distributed.destroy_process_group()
    assert found == TensorFinding("weight", (2,), "float32", 1, 0)


def test_it_waits_for_no_device() -> None:
    """One copy for all tensors; the counts are there when the copy has arrived, and not before."""
    device = LateDevice()
    job = late(device, a=torch.tensor([nan]), b=torch.ones(2), c=torch.tensor([inf, inf]))
    assert not job.arrived()
    assert device.behind == 1
    device.advance()

    assert job.arrived()
    assert [(found.name, found.nan, found.inf) for found in job.findings()] == [
        ("a", 1, 0),
        ("c", 0, 2),
    ]
    assert device.waits == 0


def test_who_must_know_can_wait() -> None:
    """At the end of training."""
    device = LateDevice()
    job = late(device, a=torch.tensor([nan]))
    job.wait()
    assert job.arrived()
    assert device.waits == 1


def test_what_is_counted_is_what_was_there_when_it_was_asked_for() -> None:
    """The weights change before the counts arrive."""
    device, weight = LateDevice(), torch.tensor([nan])
    job = late(device, weight=weight)
    weight.fill_(1.0)
    device.advance()
    assert job.inspection(1).bad == 1


def test_no_operation_waits() -> None:
    """Not one that any device would have to be waited for."""
    values = [("a", torch.tensor([nan, 1.0])), ("b", torch.ones(3, dtype=torch.float16))]
    with SyncAudit() as audit:
        CountJob(values).inspection(1)
    assert audit.syncs == []


def test_inference_mode_does_not_matter() -> None:
    """Neither around the counting nor around the tensor's making."""
    with torch.inference_mode():
        values = torch.tensor([nan])
        assert CountJob([("a", values)]).inspection(1).bad == 1
    assert CountJob([("a", values)]).inspection(1).bad == 1


def test_a_device_without_events_cannot_be_asked() -> None:
    """The message says why; the CPU needs none."""
    assert open_backend(torch.device("cpu")) is None
    with pytest.raises(TypeError, match="without waiting"):
        open_backend(torch.device("meta"))
