# SPDX-License-Identifier: Apache-2.0
"""What a GPU could do at best, at the precision of a Trainer's run."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from tests.integration.tiny import tiny_model
from training_exporter.gpu.peaks import peak_flops
from training_exporter.integrations import effort
from training_exporter.integrations.trainer_settings import precision_of


def fake_args(**given: Any) -> Any:
    return SimpleNamespace(**{"bf16": False, "fp16": False, "n_gpu": 1, **given})


def test_the_peak_is_that_of_the_models_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its name and the run's precision; none for a model that lies on several devices."""

    class OnGpus(nn.Module):
        def __init__(self, *devices: str) -> None:
            super().__init__()
            self.devices = devices

        def parameters(self, recurse: bool = True) -> Any:
            return iter([SimpleNamespace(device=torch.device(each)) for each in self.devices])

    name = "NVIDIA A100-SXM4-80GB"
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(name=name)
    )

    assert effort.peak_of(OnGpus("cuda:0"), fake_args(bf16=True)) == peak_flops(name, "bf16")
    assert effort.peak_of(OnGpus("cuda:0"), fake_args()) == peak_flops(name, "fp32")
    assert effort.peak_of(OnGpus("cuda:0", "cuda:1"), fake_args()) is None
    assert effort.peak_of(OnGpus("cuda:0"), fake_args(n_gpu=2)) is None
    assert effort.peak_of(OnGpus("cpu"), fake_args()) is None
    assert effort.peak_of(OnGpus(), fake_args()) is None
    assert effort.peak_of(None, fake_args()) is None


@pytest.fixture
def restored_matmul_precision() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.usefixtures("restored_matmul_precision")
def test_the_precision_is_what_matrices_are_multiplied_in() -> None:
    """Autocast, else the model's own, else float32 with or without TF32."""
    half = tiny_model().to(torch.bfloat16)

    assert precision_of(tiny_model(), fake_args(bf16=True)) == "bf16"
    assert precision_of(tiny_model(), fake_args(fp16=True)) == "fp16"
    assert precision_of(half, fake_args()) == "bf16"
    assert precision_of(tiny_model(), fake_args()) == "fp32"
    torch.backends.cuda.matmul.allow_tf32 = True
    assert precision_of(tiny_model(), fake_args()) == "tf32"
    assert precision_of(nn.Linear(2, 2), fake_args()) == "tf32"
