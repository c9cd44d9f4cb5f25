# SPDX-License-Identifier: Apache-2.0
"""When a real Trainer's run will be done."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from tests.integration.tiny import RecordingExporter, Rows, make_trainer
from training_exporter.integrations.huggingface import PrometheusCallback

NAP = 0.15


class Nap(TrainerCallback):
    """Sleeps in evaluations or after saving, and before each step but the first reads how many of
    them the part of the ETA is for that is not for steps."""

    def __init__(self, exporter: RecordingExporter, hook: str, activity: str) -> None:
        self.exporter = exporter
        self.activity = activity
        self.left: dict[int, float] = {}
        setattr(self, hook, self.nap)

    def nap(self, *args: Any, **kwargs: Any) -> None:
        time.sleep(NAP)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        value = self.exporter.value("training_eta_seconds")
        snapshot = self.exporter.snapshot
        if value is not None and snapshot.pace_seconds is not None:
            steps = (state.max_steps - state.global_step) * snapshot.pace_seconds
            seen = snapshot.pauses.get(self.activity)
            assert seen is None or (seen.seconds or 0) >= NAP
            self.left[state.global_step] = (value - steps) / ((seen and seen.seconds) or NAP)


def evaluating() -> dict[str, Any]:
    return {"eval_data": Rows(4), "eval_strategy": "steps", "eval_steps": 2}


def saving() -> dict[str, Any]:
    return {"save_strategy": "steps", "save_steps": 4}


@pytest.mark.parametrize(
    ("hook", "activity", "settings", "left"),
    [
        # step after which: pauses that are to come and known of
        ("on_prediction_step", "evaluation", evaluating, {1: 0, 2: 2, 3: 2, 4: 1, 5: 1}),
        ("on_save", "saving", saving, {1: 0, 2: 0, 3: 0, 4: 1, 5: 1}),
        ("on_prediction_step", "evaluation", dict, {1: 0, 2: 0, 3: 0, 4: 0, 5: 0}),
    ],
)
def test_pauses_to_come_are_in_the_time_left(
    hook: str,
    activity: str,
    settings: Callable[[], dict[str, Any]],
    left: dict[int, int],
    tmp_path: Path,
) -> None:
    """Those on the Trainer's schedule, once one has shown how long it takes; saving at the end."""
    exporter = RecordingExporter()
    nap = Nap(exporter, hook, activity)
    make_trainer(
        tmp_path,
        PrometheusCallback(exporter),
        nap,
        max_steps=6,
        logging_strategy="no",
        **settings(),
    ).train()

    assert nap.left == pytest.approx(left, abs=1e-6)
    assert exporter.value("training_eta_seconds") == 0
