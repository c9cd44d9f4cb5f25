# SPDX-License-Identifier: Apache-2.0
"""Looks at values one by one on a real GPU, under torch's own alarm for everything that waits."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf, nan

import pytest
import torch
from torch import nn

from training_exporter.device.histograms import SAMPLE, HistogramPass
from training_exporter.device.magnitudes import MagnitudePass
from training_exporter.device.survey import Survey
from training_exporter.layers.histograms import Histogram, RawHistograms
from training_exporter.layers.magnitudes import Magnitudes

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SCALE = 8.0


@pytest.fixture(params=[False, True], ids=["any", "deterministic"])
def algorithms(request: pytest.FixtureRequest) -> Iterator[None]:
    """Those that a training may have restricted torch to."""
    torch.use_deterministic_algorithms(request.param)
    yield
    torch.use_deterministic_algorithms(False)


def model_on(device: str) -> nn.Module:
    """Large and small, with gaps in memory, in two dtypes, and with what is not finite; the same on
    each device."""
    generator = torch.Generator().manual_seed(0)

    def values(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 1e-3

    with_gaps = values(2, SAMPLE).to(device)[:, : SAMPLE // 2 + 1]
    model = nn.ParameterDict(
        {
            "large": nn.Parameter(values(1000, SAMPLE // 500).to(device)),
            "gaps": nn.Parameter(with_gaps),
            "small": nn.Parameter(values(7).to(device)),
            "narrow": nn.Parameter(values(300).bfloat16().to(device)),
        }
    )
    for parameter in model.values():
        gradient = values(*parameter.shape).to(parameter.dtype)
        gradient.view(-1)[:3] = torch.tensor([nan, inf, 0.0])
        parameter.grad = gradient.to(device)
    return model


def found_by(survey: Survey[RawHistograms] | Survey[Magnitudes]) -> RawHistograms | Magnitudes:
    """What a second look finds, which may not wait; the first one makes the rows, which may."""
    scale = torch.tensor(SCALE, device="cuda")
    survey.before_clipping(scale)
    survey.collect(wait=True)
    torch.cuda.set_sync_debug_mode("error")
    try:
        survey.before_clipping(scale)
        found = survey.collect()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    (only,) = [*found, *survey.collect()]
    return only


def about(histogram: Histogram) -> Histogram:
    """Sums are added up in another order."""
    return histogram._replace(
        sum=pytest.approx(histogram.sum, rel=1e-6, abs=1e-9),
        squares=pytest.approx(histogram.squares, rel=1e-6),
    )


@pytest.mark.usefixtures("algorithms")
def test_histograms_are_those_of_the_cpu_and_nobody_waits() -> None:
    """Of the same elements of large parameters, too."""
    model, twin = model_on("cuda"), model_on("cpu")
    on_cpu = HistogramPass(twin)
    on_cpu.before_clipping(SCALE)
    (raw,) = on_cpu.collect()
    expected = raw.read()
    found = found_by(HistogramPass(model))
    assert isinstance(found, RawHistograms)

    assert len(expected.gradients) == 4
    assert found.read().gradients == {
        layer: about(histogram) for layer, histogram in expected.gradients.items()
    }
    assert found.read().parameters == {
        layer: about(histogram) for layer, histogram in expected.parameters.items()
    }


@pytest.mark.usefixtures("algorithms")
def test_magnitudes_are_those_of_the_cpu_and_nobody_waits() -> None:
    """All of them, in chunks."""
    model, twin = model_on("cuda"), model_on("cpu")
    on_cpu = MagnitudePass(twin)
    on_cpu.before_clipping(SCALE)
    (expected,) = on_cpu.collect()
    found = found_by(MagnitudePass(model))
    assert isinstance(found, Magnitudes)

    assert found._replace(sum=0.0) == expected._replace(sum=0.0)
    assert found.sum == pytest.approx(expected.sum, rel=1e-6)


def test_memory_is_bounded() -> None:
    """However large a parameter is, and though it has gaps."""
    weights = torch.zeros(2, 64 * SAMPLE, device="cuda")[:, 1:]
    model = nn.ParameterDict({"large": nn.Parameter(weights)})
    survey = HistogramPass(model)
    survey.before_clipping()
    survey.collect(wait=True)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    survey.before_clipping()

    assert torch.cuda.max_memory_allocated() - before < 32 * 2**20
