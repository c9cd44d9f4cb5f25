# SPDX-License-Identifier: Apache-2.0
"""The demo put together: a model, text, the Hugging Face Trainer, faults, and the exporter."""

from __future__ import annotations

import os
from contextlib import suppress
from math import isinf
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import TIMEOUT_MAX, Event
from typing import Any, NamedTuple

from rich.console import Console
from transformers import PrinterCallback, Trainer, TrainingArguments, default_data_collator
from transformers.utils import logging as transformers_logging

from training_exporter.config import ENV_PREFIX
from training_exporter.demo.display import Display, logs_on
from training_exporter.demo.fake_gpus import fake_gpus
from training_exporter.demo.faults import fault_callback
from training_exporter.demo.model import build_model, use_half_of_the_cores
from training_exporter.demo.plan import DemoError, DemoPlan
from training_exporter.demo.report import summary, welcome, why_nan
from training_exporter.demo.shell import folder_for_reports
from training_exporter.demo.text import library_text
from training_exporter.integrations.huggingface import PrometheusCallback
from training_exporter.terminal import Terminated, signals_interrupt

ROWS_PER_STEP = 32
LEARNING_RATE = 3e-3
WARMUP_STEPS = 20
CLIP_ABOVE = 2.0
"""Norms are about 0.7 here, so few steps are clipped, as it should be."""


class Ending(NamedTuple):
    """How a training ended.

    Attributes:
        text: what to call it.
        code: the exit code.
        terminated: whether the process was told to end, and not only the training.
    """

    text: str
    code: int
    terminated: bool = False


def run_demo(plan: DemoPlan, console: Console) -> int:
    """Train as planned, and say what happens.

    Returns:
        the exit code: 0 at the end or after Ctrl-C or SIGTERM, which is how a demo is left; 1 after
        a crash.

    Raises:
        DemoError: it cannot begin.
    """
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    use_half_of_the_cores()
    with (
        logs_on(console),
        signals_interrupt(),
        fake_gpus(plan.fake_gpus),
        TemporaryDirectory() as folder,
        folder_for_reports() as reports,
    ):
        watching = _watching(plan, reports)
        exporter = watching.exporter
        try:
            display = Display(console, exporter, plan.steps)
            trainer = _trainer(plan, folder, watching, display)
            console.print(welcome(plan, exporter.url))
            ending = _train(trainer, display)
            console.print(summary(ending.text, exporter.snapshot, display.diary.begun))
            if exporter.status.report is not None:
                console.print(why_nan(exporter.status.report), soft_wrap=True)
            if not ending.terminated:
                _linger(plan.linger, console)
        finally:
            with suppress(KeyboardInterrupt):
                exporter.close(linger=True)
    return ending.code


def _watching(plan: DemoPlan, reports: Path) -> PrometheusCallback:
    """The one line of a user, with what was asked for at the command line."""
    # No process trains on a GPU that is not there, so that only a view of all of them shows it.
    gpus = "all" if plan.fake_gpus else None
    chosen: dict[str, Any] = {"port": plan.port, "run": plan.run, "gpus": gpus}
    if not os.environ.get(f"{ENV_PREFIX}FORENSICS_DIR"):
        chosen["forensics_dir"] = str(reports)
    settings = {name: value for name, value in chosen.items() if value is not None}
    try:
        return PrometheusCallback(**settings)
    except ValueError as error:
        raise DemoError(str(error)) from error


def _trainer(
    plan: DemoPlan, folder: str, watching: PrometheusCallback, display: Display
) -> Trainer:
    training, evaluation = library_text(plan.seed)
    trainer = Trainer(
        model=build_model(plan.seed),
        args=_arguments(plan, folder),
        train_dataset=training,
        eval_dataset=evaluation,
        data_collator=default_data_collator,
        callbacks=[watching, *map(fault_callback, plan.faults), display],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _arguments(plan: DemoPlan, folder: str) -> TrainingArguments:
    return TrainingArguments(
        output_dir=folder,
        run_name="demo",
        max_steps=plan.steps,
        seed=plan.seed,
        per_device_train_batch_size=ROWS_PER_STEP,
        per_device_eval_batch_size=ROWS_PER_STEP,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=WARMUP_STEPS,
        max_grad_norm=CLIP_ABOVE,
        eval_strategy="steps" if plan.eval_every else "no",
        eval_steps=plan.eval_every or None,
        logging_steps=10,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )


def _train(trainer: Trainer, display: Display) -> Ending:
    """Train to some end."""
    with display:
        try:
            trainer.train()
        except KeyboardInterrupt as interrupt:
            text = f"Stopped after step {trainer.state.global_step}"
            return Ending(text, 0, terminated=isinstance(interrupt, Terminated))
        # What the fault `crash` raises. Anything else is a bug of the demo and shows its traceback.
        except IndexError as error:
            step = trainer.state.global_step + 1
            return Ending(f"Crashed in step {step} with {type(error).__name__}: {error}", 1)
    return Ending(f"Completed {trainer.state.global_step} steps", 0)


def _linger(seconds: float, console: Console) -> None:
    """Go on serving for a while, so that people and scrapes can see how the run ended."""
    if seconds > 0:
        console.print(
            "The run is over; its page stays until Ctrl-C."
            if isinf(seconds)
            else f"Serving for another {seconds:g} seconds; Ctrl-C leaves."
        )
        with suppress(KeyboardInterrupt):
            Event().wait(min(seconds, TIMEOUT_MAX))
