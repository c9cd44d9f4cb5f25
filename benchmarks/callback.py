# SPDX-License-Identifier: Apache-2.0
"""The whole callback on a real Trainer's steps: time per step with and without it.

Both in one run: every BLOCK steps the callback and what it has put around the Trainer's methods are
taken off, or put back. So what else goes on in the process and on the machine meets both. A step is
timed from its beginning to the next one's, so that all the callback does is in it. The models are
tiny, which is the worst case for the ratio: on a real model the same microseconds vanish. Where
there is a GPU, larger ones run on it, too: in the largest the host is ahead of the device.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from benchmarks.report import often
from training_exporter.integrations.huggingface import PrometheusCallback
from training_exporter.integrations.trainer_wraps import MethodWrap

BLOCK = 10
BLOCKS = often(120)


class Size(NamedTuple):
    """Of a model and its rows."""

    hidden: int
    layers: int = 2
    tokens: int = 32


ON_CPU = (Size(32), Size(256))
ON_CUDA = (Size(256), Size(2048, layers=16, tokens=1024))


class Switch(TrainerCallback):
    """Takes a callback off every other block of steps, and times the steps of both kinds."""

    def __init__(self, watched: PrometheusCallback) -> None:
        self.seconds: dict[bool, list[float]] = {True: [], False: []}
        self.trainer: Trainer
        self._watched = watched
        self._on = True
        self._steps = 0
        self._began = 0.0
        self._wraps: list[tuple[object, str, MethodWrap]] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        now = perf_counter()
        if self._steps % BLOCK > 1:  # the first two of a block are in between
            self.seconds[self._on].append(now - self._began)
        if self._steps % BLOCK == 0:
            self._toggle()
        self._steps += 1
        self._began = perf_counter()

    def _toggle(self) -> None:
        self._on = not self._on
        handler = self.trainer.callback_handler
        if self._on:
            handler.callbacks = [*handler.callbacks, self._watched]
            for owner, name, wrap in self._wraps:
                setattr(owner, name, wrap)
            return
        handler.callbacks = [other for other in handler.callbacks if other is not self._watched]
        owners = (self.trainer, self.trainer.accelerator, handler)
        self._wraps = [
            (owner, name, wrap)
            for owner in owners
            for name, wrap in vars(owner).items()
            if isinstance(wrap, MethodWrap)
        ]
        for owner, name, _ in self._wraps:
            delattr(owner, name)


def median_seconds(size: Size, *, use_cpu: bool) -> tuple[float, float]:
    """Median time of a step without and with the callback."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # two threads of a tiny model spend their time on each other
    config = LlamaConfig(
        hidden_size=size.hidden, intermediate_size=2 * size.hidden, num_hidden_layers=size.layers,
        num_attention_heads=2, vocab_size=256,
    )  # fmt: skip
    tokens = torch.randint(0, 256, (64, size.tokens))
    rows = [{"input_ids": row, "labels": row, "attention_mask": row.ge(0)} for row in tokens]
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(), max_steps=BLOCK * BLOCKS, per_device_train_batch_size=4,
        use_cpu=use_cpu, bf16=not use_cpu, report_to=[], save_strategy="no",
        logging_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    callback = PrometheusCallback(port=0, address="127.0.0.1")
    switch = Switch(callback)
    switch.trainer = Trainer(
        model=LlamaForCausalLM(config), args=arguments, train_dataset=rows,
        callbacks=[switch, callback],
    )  # fmt: skip
    switch.trainer.train()
    callback.exporter.close()
    return median(switch.seconds[False]), median(switch.seconds[True])


def main(arguments: list[str]) -> None:
    logging.getLogger("training_exporter").setLevel(logging.ERROR)  # what it finds is no news here
    compare(ON_CPU, use_cpu=True)
    if torch.cuda.is_available():
        print(torch.cuda.get_device_name())
        compare(ON_CUDA, use_cpu=False)


def compare(sizes: Iterable[Size], *, use_cpu: bool) -> None:
    for size in sizes:
        without, watched = median_seconds(size, use_cpu=use_cpu)
        added = watched - without
        print(
            f"hidden size {size.hidden:4}, {size.layers:2} layers: {without * 1e3:6.2f} ms a step, "
            f"with the callback {added * 1e6:+5.0f} us ({added / without:+.1%})"
        )
