# SPDX-License-Identifier: Apache-2.0
"""One rank of a data-parallel training on the CPU in which rank 1 gives trouble; test_ranks_e2e.py
starts several."""

from __future__ import annotations

import json
import os
import sys
import time
from math import nan
from pathlib import Path
from typing import Any

import torch
from torch.distributed import destroy_process_group
from transformers import Trainer

from tests.integration.tiny import RecordingExporter, Rows, make_trainer, padded_row
from training_exporter import TrainingExporter
from training_exporter.integrations.huggingface import PrometheusCallback

SLOW_SECONDS = 0.05
STEPS = 8
NAN_STEP = 40
RANK = int(os.environ.get("RANK", "0"))


class Trouble(Rows):
    """Rows that come slowly, and hang once there is a file that says so."""

    def __init__(self, seconds: float, hang: Path) -> None:
        super().__init__(100_000)
        self.seconds = seconds
        self.hang = hang

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        time.sleep(self.seconds)
        while self.hang.exists():
            time.sleep(0.1)
        return padded_row(index % 64)


class TroubledTrainer(Trainer):
    """Whose forward pass may take longer, and whose loss may once be NaN with sound gradients."""

    seconds = 0.0
    nan_step = -1

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(*args, **kwargs)
        time.sleep(self.seconds)
        return loss + nan if self.state.global_step == self.nan_step else loss


def trainer_of(
    folder: Path, exporter: TrainingExporter, *, data: float, forward: float, **changed: Any
) -> Any:
    trainer = make_trainer(
        folder,
        PrometheusCallback(exporter),
        data=Trouble(data, folder / f"hang-{RANK}"),
        trainer_class=TroubledTrainer,
        per_device_train_batch_size=1, max_grad_norm=0.0, ddp_backend="gloo", **changed,
    )  # fmt: skip
    trainer.seconds = forward
    return trainer


def compare(folder: Path) -> None:
    """Rank 1 is slow in one thing after the other; each rank writes its own time of each step."""
    slow = SLOW_SECONDS if RANK == 1 else 0.0
    own = {}
    for name, data, forward, averaged in (
        ("forward", 0.0, slow, True), ("data", slow, 0.0, True), ("no gather", slow, 0.0, False),
    ):  # fmt: skip
        exporter = RecordingExporter()
        trainer_of(
            folder, exporter, data=data, forward=forward, max_steps=STEPS,
            average_tokens_across_devices=averaged, gradient_accumulation_steps=2,
        ).train()  # fmt: skip
        assert not any(exporter.health.errors.values())
        passes = exporter.status.forward
        assert passes is not None
        assert passes.begun == passes.ended == 2 * STEPS
        waited = sum(step.data_wait_seconds or 0.0 for step in exporter.steps)
        own[name] = ((passes.seconds or 0.0) + waited) / (2 * STEPS)
    (folder / f"{RANK}.json").write_text(json.dumps(own))


def serve(folder: Path) -> None:
    """Rank 1 is slow, rank 2 has a NaN; all go on until somebody ends them."""
    exporter = TrainingExporter(address="127.0.0.1", port=0, run="ranks", linger=2.0)
    exporter.start()
    (folder / f"{RANK}.json").write_text(json.dumps({"port": exporter.port, "pid": os.getpid()}))
    trainer = trainer_of(
        folder, exporter, data=0.02, forward=SLOW_SECONDS if RANK == 1 else 0.0, max_steps=100_000
    )
    trainer.nan_step = NAN_STEP if RANK == 2 else -1
    trainer.train()


if __name__ == "__main__":
    {"compare": compare, "serve": serve}[sys.argv[2]](Path(sys.argv[1]))
    destroy_process_group()
