# SPDX-License-Identifier: Apache-2.0
"""Real Trainers on a real GPU: the same numbers as the Trainer's log, and no wait of ours."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback

from tests.integration.tiny import (
    STEPS,
    RecordingExporter,
    assert_like_the_log,
    assert_same_weights,
    make_trainer,
    weights,
)
from training_exporter.gpu.peaks import peak_flops
from training_exporter.integrations.huggingface import PrometheusCallback

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

MANY = 12


def on_cuda(folder: Path, *callbacks: TrainerCallback, **changed: Any) -> Trainer:
    """One that accumulates and clips."""
    settings = {"gradient_accumulation_steps": 2, "max_grad_norm": 0.5, **changed}
    return make_trainer(folder, *callbacks, use_cpu=False, **settings)


@pytest.mark.parametrize("precision", [{}, {"bf16": True}, {"fp16": True}], ids=str)
def test_values_are_those_of_the_log(precision: dict[str, bool], tmp_path: Path) -> None:
    """In each precision, with the gradient norms of steps that a loss scaler skipped, too."""
    exporter = RecordingExporter(layer_interval=1)
    trainer = on_cuda(tmp_path, PrometheusCallback(exporter), **precision)
    trainer.train()

    assert_like_the_log(trainer, exporter)
    assert exporter.health.dropped_observations == 0
    scaled = [signals.loss_scale is not None for signals in exporter.steps]
    assert scaled == [precision == {"fp16": True}] * STEPS


def test_what_only_a_gpu_tells_is_on_the_page(tmp_path: Path) -> None:
    """The device's own times, the allocator's numbers, and the share of the peak where it is
    known."""
    exporter = RecordingExporter()
    on_cuda(tmp_path, PrometheusCallback(exporter), max_steps=MANY, bf16=True).train()
    exporter.close()
    known = peak_flops(torch.cuda.get_device_name(), "bf16") is not None

    for phase in ("forward_backward", "optimizer"):
        assert (exporter.value("training_compute_seconds_total", phase=phase) or 0) > 0
    assert exporter.health.dropped_phases == 0
    assert (exporter.value("training_cuda_memory_allocated_bytes", device="0") or 0) > 0
    assert (exporter.value("training_mfu_ratio") is not None) == known


class Waits(TrainerCallback):
    """Counts, by the line that asked for it, what makes the host wait in later steps than the
    first, in which rows are made."""

    def __init__(self) -> None:
        self.lines: Counter[str] = Counter()
        self._catcher = warnings.catch_warnings(record=True)
        self._seen: list[warnings.WarningMessage] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            caught = self._catcher.__enter__()
            assert caught is not None
            self._seen = caught
            warnings.simplefilter("always")
            torch.set_warn_always(True)
            torch.cuda.set_sync_debug_mode("warn")
        if state.global_step == MANY:
            torch.cuda.set_sync_debug_mode("default")
            torch.set_warn_always(False)
            self._catcher.__exit__(None, None, None)
            waits = [seen for seen in self._seen if "synchronizing CUDA" in str(seen.message)]
            self.lines = Counter(f"{wait.filename}:{wait.lineno}" for wait in waits)


def waits_of(folder: Path, *callbacks: TrainerCallback) -> Counter[str]:
    waits = Waits()
    on_cuda(folder, *callbacks, waits, max_steps=MANY, logging_steps=5).train()
    return waits.lines


def test_no_wait_is_ours(tmp_path: Path) -> None:
    """As many as without us, from the same lines, though each step looks at all layers."""
    with_us = waits_of(tmp_path, PrometheusCallback(serve=False, layer_interval=1))
    without = waits_of(tmp_path)

    assert with_us == without
    assert without.total() > 0  # the Trainer moves batches and looks for NaN; else we are blind


def test_weights_are_the_same_to_the_bit(tmp_path: Path) -> None:
    """After a training under our eyes and one without us."""

    def trained(*callbacks: TrainerCallback) -> dict[str, torch.Tensor]:
        trainer = on_cuda(tmp_path, *callbacks, max_steps=MANY)
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            trainer.train()
        finally:
            torch.use_deterministic_algorithms(False)
        return weights(trainer.model)

    watched = trained(PrometheusCallback(serve=False, layer_interval=1))
    assert_same_weights(watched, trained())
