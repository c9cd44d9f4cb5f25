# SPDX-License-Identifier: Apache-2.0
"""NaN in a loop written by hand, as its author calls the exporter."""

from __future__ import annotations

import subprocess
import sys
from math import nan
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from weakref import ref

import pytest
import torch
from torch import nn

from tests.unit.device.late_device import LateDevice
from tests.unit.device.mixture import late
from training_exporter import TrainingExporter
from training_exporter.device.inspection import Inspector
from training_exporter.forensics.cause import likely_causes
from training_exporter.forensics.report import Report
from training_exporter.forensics.store import read_report
from training_exporter.integrations.classes import classes_of
from training_exporter.integrations.nan_watch import NanWatch

BROKEN = 8


@pytest.fixture
def exporter(tmp_path: Path) -> TrainingExporter:
    return TrainingExporter(serve=False, forensics_dir=str(tmp_path))


def reports_in(folder: Path) -> list[Report]:
    return [read_report(path) for path in sorted(folder.glob("*.json"))]


class Loop:
    """A regression by hand that says as much as its author wants to say.

    Args:
        before: micro-batches are told before the gradients are clipped.
        clips: else the gradients are only observed.
    """

    def __init__(self, exporter: TrainingExporter, *, before: bool, clips: bool = True) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        self.exporter, self.before, self.clips = exporter, before, clips
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)
        exporter.watch_model(self.model)

    def step(self, values: torch.Tensor, factor: float = 1.0, **told: Any) -> None:
        loss = self.model(values).square().mean() * factor
        self.optimizer.zero_grad()
        loss.backward()
        batch = {"loss": loss.detach(), "inputs": {"values": values}}
        if self.before:
            self.exporter.add_micro_batch(**batch)
        if self.clips:
            self.exporter.clip_grad_norm_(self.model.parameters(), 1.0)
        else:
            self.exporter.observe_gradients(self.model)
        self.optimizer.step()
        self.exporter.step(**({} if self.before else batch), learning_rate=self.optimizer, **told)

    def run(self, steps: int = BROKEN - 1) -> None:
        for _ in range(steps):
            self.step(torch.randn(4, 4))


def hand_loop(exporter: TrainingExporter) -> Any:
    return exporter._hand_loop()


def break_weight(loop: Loop) -> None:
    with torch.no_grad():
        next(loop.model.parameters())[0, 0] = nan


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("clips", [True, False])
def test_a_weight_that_was_broken_before_is_the_source(
    exporter: TrainingExporter, tmp_path: Path, before: bool, clips: bool
) -> None:
    """Though the update breaks the others, and whenever the loop tells its loss."""
    loop = Loop(exporter, before=before, clips=clips)
    loop.run()
    break_weight(loop)
    loop.step(torch.randn(4, 4))

    [found] = reports_in(tmp_path)
    assert (found.step, found.source) == (BROKEN, "parameters")
    assert found.parameters is not None
    assert [tensor.name for tensor in found.parameters.worst] == ["0.weight"]
    # Where only the clipped gradients could be looked at, they are not.
    assert (found.gradients is None) == (clips and not before)
    assert exporter.status.report is not None


def test_a_nan_in_the_last_step_of_a_late_device_has_its_first_layer(tmp_path: Path) -> None:
    """Step and layers are known only when they are waited for, at the end."""
    exporter = TrainingExporter(serve=False, forensics_dir=str(tmp_path), layer_interval=1)
    loop, device, internals = Loop(exporter, before=True), LateDevice(), hand_loop(exporter)
    internals._recorder = device.recorder()
    internals._layers._new_pass = lambda model: late(device, model)
    internals._nans._inspector = Inspector(open_backend=lambda _: device)
    loop.run(3)
    loop.model[2].bias.register_hook(lambda gradient: gradient * nan)
    loop.run(1)

    exporter.finish()

    [found] = reports_in(tmp_path)
    assert (found.step, found.first_layer) == (4, "L2")
    assert not any(exporter.health.errors.values())


@pytest.mark.parametrize("method", ["after_step", "collect"])
def test_layers_that_fail_take_nothing_else_along(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps are handed on, a report is written, and each error is counted."""

    def planted(*_: object, **__: object) -> None:
        raise LookupError("planted")

    monkeypatch.setattr(f"training_exporter.device.layers.LayerPass.{method}", planted)
    exporter = TrainingExporter(serve=False, forensics_dir=str(tmp_path), layer_interval=1)
    loop = Loop(exporter, before=True)
    loop.run(2)
    loop.step(torch.full((4, 4), nan))
    exporter.finish()

    [found] = reports_in(tmp_path)
    assert (found.step, found.source) == (3, "inputs")
    assert exporter.health.errors["step"] >= 3


@pytest.mark.parametrize("before", [True, False])
def test_a_bad_batch_is_the_source(
    exporter: TrainingExporter, tmp_path: Path, before: bool
) -> None:
    """Also when it is told only with the step."""
    loop = Loop(exporter, before=before)
    loop.run()
    loop.step(torch.full((4, 4), nan))
    loop.run()

    [found] = reports_in(tmp_path)
    assert (found.step, found.source) == (BROKEN, "inputs")
    assert likely_causes(found)[0].name == "inputs"


def test_a_step_number_of_ones_own_is_that_of_the_report(
    exporter: TrainingExporter, tmp_path: Path
) -> None:
    """As after a resume, where the first step is not step 1."""
    loop = Loop(exporter, before=True)

    loop.step(torch.randn(4, 4), nan, step=5000)

    [found] = reports_in(tmp_path)
    assert found.step == 5000
    assert found.gradients is not None
    assert found.gradients.bad == 4


def test_nobody_looks_during_the_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A NaN that stays costs its steps no look at all weights, until a report is due again."""
    looks: list[int] = []
    monkeypatch.setattr(
        Inspector, "look_before_update", lambda self, step, *_, **__: looks.append(step)
    )
    exporter = TrainingExporter(serve=False, forensics_dir=str(tmp_path), forensics_quiet_steps=6)
    loop = Loop(exporter, before=True)
    for _ in range(8):
        loop.step(torch.randn(4, 4), nan)

    assert looks == [1, 7]


def test_a_loop_that_numbers_its_steps_by_epoch(tmp_path: Path) -> None:
    """After the silence the weights are looked at before the update again, whatever the number."""
    exporter = TrainingExporter(
        serve=False, forensics_dir=str(tmp_path), forensics_quiet_steps=BROKEN
    )
    loop = Loop(exporter, before=True)
    for _ in range(4):
        for step in range(BROKEN // 2):
            loop.step(torch.randn(4, 4), nan, step=step)

    found = reports_in(tmp_path)
    assert [one.step for one in found] == [0, 0]
    assert [one.gradients is not None for one in found] == [True, True]


def test_a_step_that_is_given_up_is_forgotten(exporter: TrainingExporter, tmp_path: Path) -> None:
    """What was seen in it belongs to no step."""
    loop = Loop(exporter, before=True)
    exporter.add_micro_batch(loss=torch.tensor(nan), inputs=torch.full((2,), nan))
    exporter.clip_grad_norm_(loop.model.parameters(), 1.0)
    exporter._hand_loop().discard()
    loop.run()
    assert reports_in(tmp_path) == []

    exporter.add_micro_batch(loss=torch.tensor(nan), inputs=torch.full((2,), nan))
    exporter._hand_loop().discard()
    loop.step(torch.randn(4, 4), nan)

    [found] = reports_in(tmp_path)
    assert found.source == "loss"
    assert found.inputs is not None
    assert found.inputs.bad == 0


def test_without_a_model_there_is_a_report_still(
    exporter: TrainingExporter, tmp_path: Path
) -> None:
    """It says that nobody told it the model."""
    exporter.step(loss=2.0)
    exporter.step(loss=nan)

    [found] = reports_in(tmp_path)
    assert found.source == "loss"
    assert {gap.what: gap.why for gap in found.gaps}["parameters"] == (
        "the model was not told to the exporter"
    )


def test_the_model_is_not_kept_alive(exporter: TrainingExporter) -> None:
    """It may be large, and the exporter outlives it."""
    model = nn.Linear(2, 2)
    known = ref(model)
    watch = NanWatch(exporter, exporter.config)
    watch.watch_model(model)

    del model

    assert known() is None


def test_numbers_alone_need_no_torch(tmp_path: Path) -> None:
    """A loop of plain numbers loads none, also when one of them is NaN."""
    code = (
        "import sys; from training_exporter import TrainingExporter\n"
        f"exporter = TrainingExporter(serve=False, forensics_dir={str(tmp_path)!r})\n"
        "exporter.step(loss=2.0); exporter.step(loss=float('nan')); exporter.finish()\n"
        "print('torch' in sys.modules)"
    )

    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)

    assert printed.stdout == b"False\n"
    [found] = reports_in(tmp_path)
    assert {gap.why for gap in found.gaps} >= {"torch was not in use"}


def test_reports_go_into_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nobody says anything else; a later change of directory does not matter."""
    monkeypatch.chdir(tmp_path)
    exporter = TrainingExporter(serve=False)
    exporter.step(loss=2.0)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    exporter.step(loss=nan)

    assert len(reports_in(tmp_path / "_training-exporter-reports")) == 1


class ForSequenceClassification:
    def __init__(self, **config: Any) -> None:
        self.config = SimpleNamespace(**config)


class LanguageModel:
    def __init__(self, head: Any) -> None:
        self.get_output_embeddings = lambda: head


class WithoutHead:
    def get_output_embeddings(self) -> None:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("model", "classes"),
    [
        (LanguageModel(nn.Linear(4, 100)), 100),
        (LanguageModel(None), None),
        (WithoutHead(), None),
        (ForSequenceClassification(num_labels=5, vocab_size=9), 5),
        (ForSequenceClassification(num_labels=5, problem_type="regression"), None),
        (ForSequenceClassification(num_labels=1), None),
        (nn.Linear(2, 2), None),
        (None, None),
    ],
)
def test_how_many_classes_labels_may_name(model: Any, classes: int | None) -> None:
    """Only where the model says so: a guess would call good labels wrong."""
    assert classes_of(model) == classes
