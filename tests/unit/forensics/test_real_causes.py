# SPDX-License-Identifier: Apache-2.0
"""Real trainings that break, from the step to the report: what it names is what was done."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from tests.unit.forensics.events import ABOUT
from training_exporter.catalog import (
    SOURCE_GRADIENTS,
    SOURCE_INPUTS,
    SOURCE_LOSS,
    SOURCE_PARAMETERS,
)
from training_exporter.device.inspection import Inspector, broken_on_host
from training_exporter.forensics.cause import likely_causes
from training_exporter.forensics.report import Report
from training_exporter.forensics.store import ReportStore, read_report
from training_exporter.forensics.text import explained
from training_exporter.forensics.watch import NonFiniteWatch, compose
from training_exporter.signals import StepSignals

FAULT = 15
CLASSES = 3

Batch = dict[str, torch.Tensor]
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Training:
    """A small real training that the forensics watch as an integration does."""

    def __init__(self, directory: Path) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, CLASSES))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.loss: Loss = cross_entropy
        self.watch, self.inspector = NonFiniteWatch(), Inspector()
        self.store = ReportStore(directory)

    def run(self, fault: Callable[[Training, int, Batch], None]) -> Report:
        for step in range(1, FAULT + 3):
            batch = {"x": torch.randn(6, 4), "labels": torch.randint(CLASSES, (6,))}
            fault(self, step, batch)
            report = self.step(step, batch)
            if report is not None:
                return read_report(self.store.save(report))
        raise AssertionError("nothing broke")

    def step(self, step: int, batch: Batch) -> Report | None:
        self.inspector.keep(batch, indices=[step])
        rate = self.optimizer.param_groups[0]["lr"]
        loss = self.loss(self.model(batch["x"]), batch["labels"])
        loss.backward()
        if self.watch.awaits_nan() and broken_on_host(loss):
            self.inspector.look_before_update(step, self.model)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1e9)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.inspector.close_step(step)
        event = self.watch.observe(
            StepSignals(
                step, 1.7e9, loss.item(), norm.item(), learning_rates={"0": rate}, skipped=False
            )
        )
        if event is None:
            return None
        begun = self.inspector.begin(step, self.model, now=step, classes=CLASSES)
        return compose(event, begun.findings(), ABOUT)


def nan_in_the_batch(run: Training, step: int, batch: Batch) -> None:
    if step == FAULT:
        batch["x"][2, 1] = nan


def no_label_left(run: Training, step: int, batch: Batch) -> None:
    if step == FAULT:
        batch["labels"].fill_(-100)


def rate_jump(run: Training, step: int, batch: Batch) -> None:
    if step == FAULT - 1:
        run.optimizer.param_groups[0]["lr"] = inf


def weight_broken(run: Training, step: int, batch: Batch) -> None:
    if step == FAULT:
        run.model[0].bias.data[3] = nan


def log_of_zero(run: Training, step: int, batch: Batch) -> None:
    if step == FAULT:
        run.loss = lambda out, labels: (out.softmax(-1) * 0).log().mean()


def root_of_zero(run: Training, step: int, batch: Batch) -> None:
    if step == FAULT:
        run.loss = lambda out, labels: (out * 0).sum().sqrt() + cross_entropy(out, labels)


def broken_from_the_start(run: Training, step: int, batch: Batch) -> None:
    run.loss = lambda out, labels: out.sum() * nan


def diverging(run: Training, step: int, batch: Batch) -> None:
    run.loss = lambda out, labels: -out.pow(4).sum()  # of the wrong sign: it is driven away
    run.optimizer.param_groups[0]["lr"] = 0.01


@pytest.mark.parametrize(
    ("fault", "source", "cause"),
    [
        (nan_in_the_batch, SOURCE_INPUTS, "inputs"),
        (no_label_left, SOURCE_LOSS, "all_labels_masked"),
        (rate_jump, SOURCE_PARAMETERS, "learning_rate"),
        (weight_broken, SOURCE_PARAMETERS, "parameters"),
        (log_of_zero, SOURCE_LOSS, "loss_function"),
        (root_of_zero, SOURCE_GRADIENTS, "backward"),
        (broken_from_the_start, SOURCE_LOSS, "first_step"),
    ],
)
def test_the_cause_is_what_was_done(tmp_path: Path, fault: Any, source: str, cause: str) -> None:
    """Each fault is done to a training that was healthy, and read back from the file."""
    report = Training(tmp_path).run(fault)
    assert report.step == (1 if fault is broken_from_the_start else FAULT)
    assert report.source == source
    assert likely_causes(report)[0].name == cause
    assert report.batch_indices == (report.step,)
    assert f"at step {report.step}" in explained(report)


def test_a_training_that_diverges_is_an_explosion(tmp_path: Path) -> None:
    """Gradients that grow with each step until float32 ends."""
    causes = likely_causes(Training(tmp_path).run(diverging))
    assert causes[0].name == "explosion"


def test_the_update_is_told_apart_from_what_came_before(tmp_path: Path) -> None:
    """A NaN in the batch finds healthy weights, and bad gradients in the layers it passed."""
    report = Training(tmp_path).run(nan_in_the_batch)
    assert report.parameters is not None
    assert (report.parameters.bad, report.parameters.before_update) == (0, True)
    assert report.gradients is not None
    assert report.gradients.bad == 4
    assert f"only a checkpoint from before step {FAULT} is good" in explained(report)
