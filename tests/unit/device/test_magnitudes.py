# SPDX-License-Identifier: Apache-2.0
"""Gradients by powers of two: exact counts, bounded memory, nobody waits."""

from __future__ import annotations

from math import inf, nan

import numpy as np
import pytest
import torch
from torch import nn

from tests.sync_audit import SyncAudit
from tests.unit.device.late_device import LateDevice
from training_exporter.device import buckets, magnitudes
from training_exporter.device.magnitudes import MagnitudePass, count
from training_exporter.device.rows import AsyncVectors
from training_exporter.layers.magnitudes import BOUNDS, Magnitudes

BORDERS = [
    0.0, -0.0, 2.0**-25, 2.0**-25 * (1 + 2**-7), 2.0**-24, 2.0**-14, 2.0**-14 - 2.0**-24,
    2.0**-14 - 2.0**-25, 2.0**-40, 2.0**-41, 1.0, -1.0, 1.0078125, 2.0**20, 3.0, 60_000.0,
    nan, inf, -inf,
]  # fmt: skip


def gradient(dtype: torch.dtype, number: int = 20_000) -> torch.Tensor:
    """Values over all magnitudes that the dtype has, with those on the borders."""
    generator = torch.Generator().manual_seed(3)
    exponents = torch.empty(number, dtype=torch.float64).uniform_(-60, 24, generator=generator)
    signs = torch.randint(0, 2, (number,), generator=generator) * 2 - 1
    values = torch.cat([signs * 2.0**exponents, torch.tensor(BORDERS, dtype=torch.float64)])
    powers = 2.0 ** torch.arange(-130, 121, dtype=torch.float64)
    return torch.cat([values, powers, -powers]).to(dtype)


def model_of(*gradients: torch.Tensor) -> nn.Module:
    model = nn.ParameterList(nn.Parameter(torch.zeros_like(each)) for each in gradients)
    for parameter, each in zip(model, gradients, strict=True):
        parameter.grad = each
    return model


def reference(values: torch.Tensor, scale: float = 1.0) -> Magnitudes:
    """By numpy, which rounds to fp16 for itself."""
    raw = np.abs(values.double().numpy().ravel())
    finite = raw[np.isfinite(raw)]
    places = np.searchsorted(np.array(BOUNDS), finite / scale, side="left")  # up to and including
    with np.errstate(over="ignore"):
        half = raw.astype(np.float16)
    return Magnitudes(
        counts=tuple(np.bincount(places, minlength=len(BOUNDS) + 1).tolist()),
        sum=pytest.approx(float((finite / scale).sum()), rel=1e-12),
        values=raw.size,
        zeros=int((raw == 0).sum()),
        flushed=int(((raw != 0) & (half == 0)).sum()),
        subnormal=int(((half != 0) & (half < 2.0**-14)).sum()),
        non_finite=raw.size - finite.size,
    )


def one_pass(model: nn.Module, scale: object = None) -> Magnitudes:
    passes = MagnitudePass(model)
    passes.before_clipping(scale)
    (found,) = passes.collect()
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_counts_are_those_of_a_float64_reference(dtype: torch.dtype) -> None:
    """Each bucket to the last value, those on the borders of fp16 and of the buckets too."""
    values = gradient(dtype)
    found = one_pass(model_of(values))

    assert found == reference(values)
    assert found.zeros >= 2
    assert found.non_finite >= 3
    assert found.subnormal > 100


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_counts_where_bincount_would_wait(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way of accelerators finds the same."""
    monkeypatch.setattr(buckets, "_by_bincount", buckets._by_histc)
    values = gradient(dtype)

    assert one_pass(model_of(values)) == reference(values)


@pytest.mark.parametrize("scale", [65536.0, torch.tensor(65536.0), torch.tensor([0.25])])
@pytest.mark.parametrize("behind", [False, True])
def test_a_loss_scale(scale: torch.Tensor | float, behind: bool) -> None:
    """Is taken out of the histogram, and stays in what fp16 makes of the values."""
    values, device = gradient(torch.float32), LateDevice()
    model = model_of(values)
    passes = late(device, model) if behind else MagnitudePass(model)
    passes.before_clipping(scale)
    found = passes.collect()
    device.advance(device.behind)

    assert len(found) == (0 if behind else 1)
    assert (found or passes.collect()) == [reference(values, float(scale))]
    assert device.waits == 0


@pytest.mark.parametrize("scale", [1000.0, 0.0, inf, nan])
def test_a_scale_that_is_no_power_of_two(scale: float) -> None:
    """Has no histogram, which would not be exact; the shares of fp16 need none."""
    found = one_pass(model_of(torch.tensor([0.0, 1e-6, 1.0])), scale)

    assert found.counts is None
    assert (found.values, found.zeros, found.subnormal) == (3, 1, 1)


@pytest.mark.parametrize("chunk", [4 * 7, 4 * 1000])
def test_small_and_large_gradients(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Together, or in parts that hold no more than a chunk, without flattening a transposed one."""
    monkeypatch.setattr(magnitudes, "CHUNK_ON_CPU", chunk)
    sizes: list[int] = []
    monkeypatch.setattr(
        magnitudes, "count", lambda values: sizes.append(values.numel()) or count(values)
    )
    values = gradient(torch.float32)[:6000]
    parts = [values[:5000].view(50, 100).t(), values[5000:5003], values[5003:5004].view(())]
    parts += list(values[5004:].split(3))

    assert one_pass(model_of(*parts)) == reference(values)
    assert max(sizes) <= chunk // 4
    assert len(sizes) < 3 * 6000 / (chunk // 4)


def test_counts_beyond_float32() -> None:
    """More equal values than float32 can count, by ones."""
    number = 2**24 + 3
    values = torch.full((1,), 0.75, dtype=torch.bfloat16).expand(number)
    found = one_pass(model_of(values))

    assert found.counts is not None
    assert found.counts[BOUNDS.index(1.0)] == found.values == number
    assert found.sum == 0.75 * number


def test_no_gradients() -> None:
    """Are no values, and no error."""
    assert one_pass(nn.Linear(2, 2)).values == 0
    assert one_pass(nn.Identity()).values == 0


def test_nothing_waits_and_nothing_changes() -> None:
    """No operation that needs a value on the host; gradients stay as they are."""
    values = gradient(torch.float32)
    model, device = model_of(values.clone()), LateDevice()
    passes = late(device, model)
    with SyncAudit() as audit:
        passes.before_clipping(torch.tensor(2.0))
        passes.collect()
        MagnitudePass(model).before_clipping(torch.tensor(2.0))

    assert audit.syncs == []
    assert torch.equal(model[0].grad.view(torch.int32), values.view(torch.int32))


def test_a_device_that_is_behind() -> None:
    """Passes without a row, or during the capture of a graph, are dropped and counted."""
    model, device = model_of(torch.ones(3)), LateDevice()
    passes = late(device, model)
    for _ in range(6):
        passes.before_clipping()
    device.graph = True
    passes.before_clipping()
    assert passes.collect() == []
    device.graph = False

    assert passes.dropped == 3
    device.advance(2)
    assert [found.values for found in passes.collect()] == [3, 3]
    assert [found.values for found in passes.collect(wait=True)] == [3, 3]


def test_only_deterministic_algorithms() -> None:
    """What the training has set is set again."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert one_pass(model_of(torch.ones(3))).values == 3
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_wrong_scale_takes_no_row() -> None:
    """The caller's mistake leaves the rows as they were."""
    model = model_of(torch.ones(3))
    passes = late(LateDevice(), model)
    for _ in range(10):
        with pytest.raises(TypeError):
            passes.before_clipping(object())

    passes.before_clipping()
    assert passes.dropped == 0


def late(device: LateDevice, model: nn.Module) -> MagnitudePass:
    """A pass to which everything is on a device that is behind."""
    return MagnitudePass(
        model,
        open_vectors=lambda at, slots, columns: AsyncVectors(
            at, slots=slots, columns=columns, backend=device
        ),
    )
