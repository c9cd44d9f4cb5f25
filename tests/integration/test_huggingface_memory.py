# SPDX-License-Identifier: Apache-2.0
"""What torch's allocator says during a Trainer's life, from an allocator that the test leads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integration.tiny import STEPS, RecordingExporter, TupleModel, make_trainer
from tests.unit.integrations.test_cuda_memory import EARLY, LATE, Watch
from training_exporter.integrations import cuda_memory
from training_exporter.integrations.huggingface import PrometheusCallback


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    """What every callback made in this test asks."""
    watch = Watch()
    monkeypatch.setattr(cuda_memory, "AllocatorWatch", lambda start: watch)
    return watch


class Hungry(TupleModel):
    """Needs more memory than there is for a batch above a size."""

    def __init__(self, watch: Watch, fits: int) -> None:
        super().__init__()
        self.watch = watch
        self.fits = fits

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> Any:
        if len(input_ids) > self.fits:
            self.watch.readings = (LATE,)
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().forward(input_ids, labels)


def test_each_step_is_read(tmp_path: Path, watch: Watch) -> None:
    """Once for the detector and for the page."""
    exporter = RecordingExporter()
    make_trainer(tmp_path, PrometheusCallback(exporter)).train()

    assert [step.memory_allocated_bytes for step in exporter.steps] == [5.0] * STEPS
    assert exporter.value("training_cuda_memory_allocated_bytes", device="0") == 5.0
    assert exporter.value("training_cuda_out_of_memory_total", device="0") == 0


def test_running_out_of_memory_in_the_first_step(tmp_path: Path, watch: Watch) -> None:
    """The crashed run shows it, though no step was ever finished."""
    exporter = RecordingExporter()
    trainer = make_trainer(tmp_path, PrometheusCallback(exporter), model=Hungry(watch, 0))
    with pytest.raises(torch.OutOfMemoryError):
        trainer.train()

    assert exporter.value("training_cuda_out_of_memory_total", device="0") == 1
    assert (exporter.status.state, exporter.status.failure) == ("crashed", "OutOfMemoryError")


def test_the_memory_is_seen_before_the_first_step(tmp_path: Path, watch: Watch) -> None:
    """Another crash leaves the reading from when the training began."""
    exporter = RecordingExporter()
    trainer = make_trainer(tmp_path, PrometheusCallback(exporter), model=Broken())
    with pytest.raises(ZeroDivisionError):
        trainer.train()

    assert exporter.memory == (EARLY,)


class Broken(TupleModel):
    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> Any:
        raise ZeroDivisionError
