# SPDX-License-Identifier: Apache-2.0
"""Histograms of gradients and weights by layer: right, bounded, nobody waits."""

from __future__ import annotations

from math import inf, nan

import numpy as np
import pytest
import torch
from torch import nn

from tests.sync_audit import SyncAudit
from tests.unit.device.late_device import LateDevice
from training_exporter.device import buckets, histograms
from training_exporter.device.histograms import HistogramPass
from training_exporter.device.rows import AsyncVectors
from training_exporter.layers.histograms import LIMITS, Histogram, LayerHistograms

BORDERS = [
    0.0, -0.0, 1.0, -1.0, 1.25, -1.25, 0.75, 2.0**-40, -(2.0**-40), 2.0**-41, 2.0**24, -(2.0**24),
    2.0**30, -(2.0**30), 3.0, nan, inf, -inf,
]  # fmt: skip


def values_of(dtype: torch.dtype, number: int = 5000) -> torch.Tensor:
    """Values of all sizes, with those on the borders of buckets."""
    generator = torch.Generator().manual_seed(3)
    exponents = torch.empty(number, dtype=torch.float64).uniform_(-45, 28, generator=generator)
    signs = torch.randint(0, 2, (number,), generator=generator) * 2 - 1
    spread = signs * 2.0**exponents
    return torch.cat([spread, torch.tensor(BORDERS, dtype=torch.float64)]).to(dtype)


def reference(values: torch.Tensor) -> Histogram:
    """By numpy. A value on a border is in the bucket that is farther from 0."""
    raw = values.double().numpy().ravel()
    finite = raw[np.isfinite(raw)]
    limits = np.array(LIMITS)
    up = np.searchsorted(limits, np.abs(finite), side="right")
    places = np.where(finite < 0, len(LIMITS) - 1 - up, up).clip(0, len(LIMITS) - 1)
    counts = np.bincount(places, minlength=len(LIMITS)).tolist()
    filled = np.flatnonzero(counts)
    shown = slice(filled[0], filled[-1] + 1)
    return Histogram(
        float(finite.size), float(finite.min()), float(finite.max()),
        pytest.approx(float(finite.sum()), rel=1e-5),
        pytest.approx(float((finite**2).sum()), rel=1e-5),
        tuple(limits[shown].tolist()), tuple(map(float, counts[shown])),
    )  # fmt: skip


def model_of(weights: torch.Tensor, gradients: torch.Tensor | None) -> nn.Module:
    model = nn.Module()
    model.map = nn.Module()
    model.map.weight = nn.Parameter(weights)
    model.map.weight.grad = gradients
    return model


def one_look(model: nn.Module, scale: object = None, **options: object) -> LayerHistograms:
    survey = HistogramPass(model, **options)  # type: ignore[arg-type]
    survey.before_clipping(scale)
    (found,) = survey.collect()
    return found.read()


@pytest.mark.parametrize("accelerator", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_counts_are_those_of_a_reference(
    dtype: torch.dtype, accelerator: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last value, and the way in which accelerators count finds the same."""
    if accelerator:
        monkeypatch.setattr(buckets, "_by_bincount", buckets._by_histc)
    weights, gradients = values_of(dtype), values_of(dtype).flip(0)[:300]
    found = one_look(model_of(weights, gradients.clone().resize_(weights.shape)))

    assert found.parameters == {"map": reference(weights)}
    assert list(found.gradients) == ["map"]


def test_gradients_without_the_loss_scale() -> None:
    """Whatever the scale is."""
    weights = torch.ones(4)
    found = one_look(model_of(weights, torch.tensor([3.0, -6.0, 0.3, 0.0])), torch.tensor(3.0))

    gradients = found.gradients["map"]
    assert gradients.least == -2.0
    assert gradients.greatest == 1.0
    assert gradients.sum == pytest.approx(-0.9)
    assert found.parameters["map"].limits == (1.25,)


def test_the_parameters_of_a_layer_are_together() -> None:
    """As many layers as there is room for."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 6))
    found = one_look(model, grouping="module", most=2)

    assert found.gradients == {}
    assert {layer: of.values for layer, of in found.parameters.items()} == {
        "L0": 3 * 4 + 4, "other": 4 * 5 + 5 + 5 * 6 + 6,
    }  # fmt: skip
    total = sum(float(each.detach().sum()) for each in model[0].parameters())
    assert found.parameters["L0"].sum == pytest.approx(total)


@pytest.mark.parametrize("layout", ["rows", "transposed", "with gaps"])
def test_large_parameters_are_sampled(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounded work. The sample stands for all, in each column alike; what is small is whole, and
    looked at together."""
    monkeypatch.setattr(histograms, "SAMPLE", 1000)
    seen: list[int] = []
    count = histograms.count
    monkeypatch.setattr(histograms, "count", lambda v: seen.append(v.numel()) or count(v))
    weights = torch.arange(64.0).repeat(1000, 1)  # a column has one value
    if layout == "transposed":
        weights = weights.t()
    if layout == "with gaps":
        weights = torch.cat([weights, weights * nan], dim=1)[:, :64]
    model = model_of(weights, None)
    model.map.bias = nn.Parameter(torch.full((8,), -5.0))
    model.map.weight_g = nn.Parameter(torch.full((2,), -5.0))
    found = one_look(model).parameters["map"]

    assert seen[1:] == [10]
    assert 900 < seen[0] <= 1000
    assert found.values == pytest.approx(64_010)
    assert found.counts[0] == 10
    assert found.sum == pytest.approx(31.5 * 64_000 - 50, rel=0.03)
    assert found.greatest >= 60


def test_nothing_is_changed_and_nobody_waits() -> None:
    """No operation that needs a value on the host."""
    weights, gradients = values_of(torch.float32), values_of(torch.float32)
    model, device = model_of(weights.clone(), gradients.clone()), LateDevice()
    survey = late(device, model)
    with SyncAudit() as audit:
        survey.before_clipping(torch.tensor(2.0))
        assert survey.collect() == []
    device.advance(device.behind)
    (found,) = survey.collect()

    assert audit.syncs == []
    assert device.waits == 0
    assert found.read().parameters == {"map": reference(weights)}
    assert torch.equal(model.map.weight.view(torch.int32), weights.view(torch.int32))
    assert torch.equal(model.map.weight.grad.view(torch.int32), gradients.view(torch.int32))


def test_a_device_that_is_behind() -> None:
    """What finds no row is dropped and counted."""
    model = model_of(torch.ones(3), torch.ones(3))
    survey = late(LateDevice(), model)
    for _ in range(5):
        survey.before_clipping()

    assert survey.dropped == 3
    assert len(survey.collect(wait=True)) == 2


def test_a_shard_without_elements() -> None:
    """As FSDP leaves to some processes, is no error."""
    found = one_look(model_of(torch.ones(0, 3), torch.ones(0, 3)))

    assert found.parameters == found.gradients == {}


def late(device: LateDevice, model: nn.Module) -> HistogramPass:
    """A pass to which everything is on a device that is behind."""
    return HistogramPass(
        model,
        open_vectors=lambda at, slots, columns: AsyncVectors(
            at, slots=slots, columns=columns, backend=device
        ),
    )
