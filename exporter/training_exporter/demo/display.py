# SPDX-License-Identifier: Apache-2.0
"""What a person at the terminal sees while the demo trains."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from training_exporter.demo.diary import Diary
from training_exporter.exporter import TrainingExporter
from training_exporter.snapshot import Snapshot

PLAIN_EVERY = 50
"""Steps between lines where there is no terminal to draw a bar on."""


class ConsoleHandler(logging.Handler):
    """Prints log records above the bar, a line each: alarms stand out from what the demo says."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        alarm = record.levelno >= logging.WARNING
        mark, style = ("▲", "bold yellow") if alarm else ("·", "dim")
        line = Text(f" {mark} {self.format(record)}", style=style)
        self._console.print(line, soft_wrap=True)


@contextmanager
def logs_on(console: Console) -> Iterator[None]:
    """While the exporter's log goes to a console, and nowhere else, so that no line comes twice."""
    exporter, demo = (
        logging.getLogger(name) for name in ("training_exporter", "training_exporter.demo")
    )
    handler = ConsoleHandler(console)
    before = exporter.propagate, demo.level
    exporter.addHandler(handler)
    exporter.propagate = False
    demo.setLevel(logging.INFO)
    try:
        yield
    finally:
        exporter.removeHandler(handler)
        exporter.propagate, demo.level = before


class Display(TrainerCallback):
    """Shows each step; to be listed after the exporter's callback, whose findings it shows.

    As a context manager it draws a bar while the block runs; without a terminal, it prints a line
    every now and then.
    """

    def __init__(self, console: Console, exporter: TrainingExporter, steps: int) -> None:
        self._console = console
        self._exporter = exporter
        self._steps = steps
        self.diary = Diary()
        self._bar = Progress(
            TextColumn("[bold]training"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=steps, numbers="")

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        snapshot = self._exporter.snapshot
        self.diary.note(snapshot)
        step, numbers = state.global_step, numbers_of(snapshot)
        self._bar.update(self._task, completed=step, numbers=numbers)
        if not self._console.is_terminal and step % PLAIN_EVERY == 0:
            self._console.print(f"step {step}/{self._steps}  {numbers}", soft_wrap=True)


def numbers_of(snapshot: Snapshot) -> str:
    """Loss, throughput and time to go in a few words; what is not known is left out."""
    loss = snapshot.signals.loss if snapshot.signals else None
    speed, seconds = snapshot.tokens_per_second, snapshot.eta_seconds
    parts = (
        f"loss {loss:.3f}" if loss is not None else "",
        f"{speed:,.0f} tokens/s" if speed is not None else "",
        f"{timedelta(seconds=round(seconds))} to go" if seconds is not None else "",
    )
    return "  ".join(filter(None, parts))
