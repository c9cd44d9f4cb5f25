# SPDX-License-Identifier: Apache-2.0
"""The whole callback on a real Trainer's step: time per step with and without it.

Runs take turns. The steps themselves are timed by the Trainer's loop from outside, so that all the
callback does is in it. The model is tiny, which is the worst case for the ratio: on a real model
the same microseconds vanish.
"""

from __future__ import annotations

import logging
import tempfile
from itertools import pairwise
from statistics import median
from time import perf_counter
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from training_exporter.integrations.huggingface import PrometheusCallback

STEPS = 200
ROUNDS = 3


class StepClock(TrainerCallback):
    """Notes when each step begins; the difference of two is all of a step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.times.append(perf_counter())


def seconds_per_step(hidden: int, callbacks: list[TrainerCallback]) -> float:
    """Median time from step to step."""
    torch.manual_seed(0)
    torch.set_num_threads(
        1
    )  # two threads of a tiny model spend their time on waiting for each other
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=2,
        num_attention_heads=2, vocab_size=256,
    )  # fmt: skip
    tokens = torch.randint(0, 256, (64, 32))
    rows = [
        {"input_ids": row, "labels": row, "attention_mask": torch.ones_like(row)} for row in tokens
    ]
    clock = StepClock()
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(), max_steps=STEPS, per_device_train_batch_size=4, use_cpu=True,
        report_to=[], save_strategy="no", logging_steps=50, disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(
        model=LlamaForCausalLM(config), args=arguments, train_dataset=rows,
        callbacks=[clock, *callbacks],
    )  # fmt: skip
    trainer.log = lambda *args, **kwargs: None
    trainer.train()
    return median(after - before for before, after in pairwise(clock.times))


def main(arguments: list[str]) -> None:
    logging.getLogger("training_exporter").setLevel(logging.ERROR)  # what it finds is no news here
    for hidden in (32, 256):
        without, watched = [], []
        for _ in range(ROUNDS):
            without.append(seconds_per_step(hidden, []))
            callback = PrometheusCallback(port=0, address="127.0.0.1")
            watched.append(seconds_per_step(hidden, [callback]))
            callback.exporter.close()
        bare, added = median(without), median(watched) - median(without)
        print(
            f"hidden size {hidden:4}: {bare * 1e3:7.2f} ms a step, with the callback "
            f"{added * 1e6:+7.0f} us ({added / bare:+.1%})"
        )
