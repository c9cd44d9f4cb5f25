# SPDX-License-Identifier: Apache-2.0
"""What a person sees of GPUs, over HTTP."""

from __future__ import annotations

from urllib.request import urlopen

import pytest
import torch

from training_exporter import TrainingExporter
from training_exporter.device.memory import AllocatorWatch
from training_exporter.gpu.readings import AllocatorReading, GpuReading, GpuReadings
from training_exporter.integrations import cuda_memory

pytestmark = pytest.mark.e2e

GIB = 2.0**30


class Full(AllocatorWatch):
    """The allocator of a process that has just run out of memory."""

    def read_at_the_end(self, error: BaseException | None) -> tuple[AllocatorReading, ...]:
        return (AllocatorReading(0, 70 * GIB, 79 * GIB, 79 * GIB, retries=1, out_of_memory=1),)


def test_a_run_that_died_for_want_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its page and its metrics say so after the end, beside what the driver says."""
    monkeypatch.setattr(cuda_memory, "AllocatorWatch", Full)
    exporter = TrainingExporter(address="127.0.0.1", port=0, run="tight", gpu_metrics=False)
    gpu = GpuReading(gpu="3", name="NVIDIA H100", cuda_device=0, memory_total_bytes=80 * GIB)
    exporter._board.gpus = lambda: GpuReadings(gpus=(gpu,))
    try:
        with pytest.raises(torch.OutOfMemoryError), exporter:
            raise torch.OutOfMemoryError
        pages = [_get(f"{exporter.url}{path}") for path in ("/", "/metrics")]
    finally:
        exporter.close()

    assert "crashed · OutOfMemoryError" in pages[0]
    assert "GPU 3 <small>cuda:0</small>" in pages[0]
    assert "out of memory once" in pages[0]
    series = 'training_cuda_out_of_memory_total{device="0",rank="0",run="tight"} 1.0'
    assert series in pages[1]


def _get(url: str) -> str:
    with urlopen(url, timeout=10) as answer:
        return str(answer.read().decode())
