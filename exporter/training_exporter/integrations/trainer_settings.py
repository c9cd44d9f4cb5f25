# SPDX-License-Identifier: Apache-2.0
"""What a Trainer's arguments say of the run."""

from __future__ import annotations

from math import isfinite
from os.path import abspath, basename
from typing import Any

import torch
from transformers import TrainerState, TrainingArguments

from training_exporter.catalog import CHECKPOINT, EVALUATION
from training_exporter.timing.eta import Schedule


def clip_threshold(args: TrainingArguments) -> float | None:
    """Norm above which the Trainer clips; None when it does not."""
    threshold = args.max_grad_norm
    return threshold if threshold and isfinite(threshold) else None


def identity(args: TrainingArguments, model: object) -> dict[str, Any]:
    """What `TrainingExporter.identify` wants to know of a run."""
    return {
        "run": run_name(args),
        "rank": args.process_index,
        "framework": "transformers",
        "model": type(model).__name__,
        "world_size": args.world_size,
        "local_rank": max(0, args.local_process_index),  # -1 where nobody has said
    }


def run_name(args: TrainingArguments) -> str:
    """The run's own name, else that of its output folder; older Trainers mix the two up."""
    if args.run_name and args.run_name != args.output_dir:
        return args.run_name
    return basename(abspath(args.output_dir or "."))


def schedules_of(args: TrainingArguments, state: TrainerState) -> dict[str, Schedule]:
    """When the Trainer means to evaluate and to save, by activity; known once it trains.

    One that goes by epochs, begins late or is somebody else's idea is left to what is seen of it.
    """
    schedules = {}
    if args.eval_strategy == "steps" and not args.eval_delay and state.eval_steps > 0:
        schedules[EVALUATION] = Schedule(state.eval_steps)
    if args.save_strategy == "steps" and state.save_steps > 0:
        schedules[CHECKPOINT] = Schedule(state.save_steps, at_end=True)
    return schedules


def precision_of(model: Any, args: TrainingArguments) -> str:
    """One of gpu.peaks.PRECISIONS: in what matrices are multiplied."""
    dtype = getattr(model, "dtype", None)
    if args.bf16 or dtype is torch.bfloat16:
        return "bf16"
    if args.fp16 or dtype is torch.float16:
        return "fp16"
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):
        # Newer releases raise when the setting is read by another name than it was set by.
        return "tf32" if matmul.fp32_precision == "tf32" else "fp32"
    return "tf32" if matmul.allow_tf32 else "fp32"
