# SPDX-License-Identifier: Apache-2.0
"""Where the time of a run goes, measured on real Trainers with parts that sleep.

All of a training's time but the sleep is an upper bound for the rest, however busy the machine is.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer, TrainerCallback

from tests.integration.tiny import STEPS, RecordingExporter, Rows, make_trainer
from training_exporter.integrations.huggingface import PrometheusCallback

NAP = 0.15


class SlowHook(TrainerCallback):
    """Sleeps in one hook, and counts how often."""

    def __init__(self, hook: str) -> None:
        self.naps = 0
        setattr(self, hook, self.nap)

    def nap(self, *args: Any, **kwargs: Any) -> None:
        self.naps += 1
        time.sleep(NAP)


class SlowSave(Trainer):
    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        time.sleep(NAP)
        super()._save_checkpoint(*args, **kwargs)


class Clock(TrainerCallback):
    """Measures from the beginning of the training to its end."""

    began = 0.0
    seconds = 0.0

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.began = time.perf_counter()

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds = time.perf_counter() - self.began


def timed(
    folder: Path, *others: TrainerCallback, **settings: Any
) -> tuple[RecordingExporter, float]:
    """A run under our eyes, and the seconds its training took."""
    exporter, clock = RecordingExporter(), Clock()
    settings = {"save_steps": 2, "eval_steps": 2, **settings}
    trainer = make_trainer(folder, clock, *others, PrometheusCallback(exporter), **settings)
    trainer.train()
    return exporter, clock.seconds


def working(exporter: RecordingExporter) -> float:
    seconds = exporter.value("training_step_duration_seconds_sum")
    assert seconds == pytest.approx(exporter.snapshot.totals.step_seconds)
    return seconds or 0.0


CASES: dict[str, tuple[str, Callable[[], dict[str, Any]], int]] = {
    "logging": ("on_log", dict, STEPS),
    "evaluation": (
        "on_prediction_step", lambda: {"eval_data": Rows(4), "eval_strategy": "steps"}, 2,
    ),
    "after_evaluation": (
        "on_evaluate", lambda: {"eval_data": Rows(4), "eval_strategy": "steps"}, 2,
    ),
    "after_saving": ("on_save", lambda: {"save_strategy": "steps"}, 2),
}  # fmt: skip
ACTIVITIES = {"after_evaluation": "evaluation", "after_saving": "saving"}


@pytest.mark.parametrize("case", CASES)
def test_what_is_no_step_is_a_pause(case: str, tmp_path: Path) -> None:
    """Slow hooks of others are in the pauses, and neither in the steps nor in the data wait."""
    hook, settings, naps = CASES[case]
    slow = SlowHook(hook)

    exporter, seconds = timed(tmp_path, slow, **settings())

    slept = naps * NAP
    activity = ACTIVITIES.get(case, case)
    assert slow.naps >= naps
    assert (exporter.value("training_pause_seconds_total", activity=activity) or 0) >= slept
    assert working(exporter) + exporter.snapshot.totals.data_wait_seconds <= seconds - slept
    assert exporter.value("training_step_duration_seconds_count") == STEPS


def test_writing_a_checkpoint_is_a_pause(tmp_path: Path) -> None:
    """However long it takes."""
    exporter, seconds = timed(tmp_path, trainer_class=SlowSave, save_strategy="steps")

    assert exporter.status.pauses["saving"] >= 2 * NAP
    assert working(exporter) + exporter.snapshot.totals.data_wait_seconds <= seconds - 2 * NAP


def test_waiting_for_data_is_no_work(tmp_path: Path) -> None:
    """A slow data set shows as data wait, with all micro-batches of a step."""
    rows = Rows(64, on_read=lambda index: time.sleep(NAP / 16))

    exporter, seconds = timed(tmp_path, data=rows, gradient_accumulation_steps=4)

    slept = STEPS * NAP
    waited = exporter.value("training_data_wait_seconds_total") or 0
    assert waited >= 0.9 * slept  # the loader reads one batch ahead, so the first came for free
    assert working(exporter) <= seconds - waited
    assert all((signals.data_wait_seconds or 0) >= NAP / 2 for signals in exporter.steps)


def test_work_is_no_waiting(tmp_path: Path) -> None:
    """A slow training step is step time, whatever else goes on between steps."""

    class Slow(Trainer):
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            time.sleep(NAP / 2)
            return super().training_step(*args, **kwargs)

    exporter, seconds = timed(
        tmp_path, trainer_class=Slow, eval_data=Rows(4), eval_strategy="steps",
        gradient_accumulation_steps=2,
    )  # fmt: skip

    assert all((signals.step_seconds or 0) >= NAP for signals in exporter.steps)
    assert exporter.snapshot.totals.data_wait_seconds <= seconds - STEPS * NAP


def test_the_parts_are_the_whole(tmp_path: Path) -> None:
    """Work, waiting and pauses leave hardly a gap between the beginning and the end of a run."""
    exporter, seconds = timed(
        tmp_path, SlowHook("on_evaluate"), eval_data=Rows(4), eval_strategy="steps",
        save_strategy="steps", data=Rows(64, on_read=lambda index: time.sleep(0.005)),
    )  # fmt: skip
    parts = (
        working(exporter)
        + exporter.snapshot.totals.data_wait_seconds
        + sum(exporter.status.pauses.values())
    )

    assert 0.5 * seconds <= parts <= seconds


def test_what_other_callbacks_do_after_a_step_is_no_wait_for_data(tmp_path: Path) -> None:
    """A slow hook of somebody else is not taken for a slow data loader."""
    slow = SlowHook("on_step_end")

    exporter, _ = timed(tmp_path, slow)

    assert slow.naps == STEPS
    assert exporter.snapshot.totals.data_wait_seconds < NAP
