# SPDX-License-Identifier: Apache-2.0
"""Real Trainers whose training breaks: a report says what was done to them, once, and hurts nobody.

Works on every release of transformers that the package supports.
"""

from __future__ import annotations

from collections.abc import Callable
from math import nan
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, default_data_collator

from tests.integration.tiny import (
    STEPS,
    RecordingExporter,
    assert_same_weights,
    make_trainer,
    trained,
    values_at_once,
    weights,
)
from tests.unit.device.late_device import LateDevice
from tests.unit.device.mixture import late
from training_exporter.catalog import NON_FINITE_SOURCES
from training_exporter.device.inspection import Inspector
from training_exporter.forensics.cause import likely_causes
from training_exporter.forensics.report import Report
from training_exporter.forensics.store import read_report
from training_exporter.integrations.huggingface import PrometheusCallback
from training_exporter.integrations.nan_watch import NanWatch

BROKEN = 6
LAST = 10
CLASSES = 3

Break = Callable[[], dict[str, Any]]


class Measurements(Dataset):  # type: ignore[type-arg]
    """Rows of numbers with a class each, which tokens could not be: they hold no NaN."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(index)
        values = torch.randn(4, generator=generator)
        return {"values": values, "labels": torch.tensor(index % CLASSES)}


class SmallNet(nn.Module):
    """A classifier with dropout, so that a random number too many would show in its weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.1))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, values: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits = self.head(self.body(values))
        return nn.functional.cross_entropy(logits, labels), logits


class BadBatch:
    """Collates, and puts a NaN into the batch of the step that is to break."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, rows: list[Any]) -> dict[str, Any]:
        batch: dict[str, Any] = default_data_collator(rows)
        self.calls += 1
        if self.calls == BROKEN:
            batch["values"][1, 2] = nan
        return batch


class BadWeight(TrainerCallback):
    """Breaks a weight right before the step."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == BROKEN:
            with torch.no_grad():
                kwargs["model"].head.weight[0, 0] = nan


class BadLoss(Trainer):
    """Adds something to the loss of one step."""

    calls = 0

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        loss = super().compute_loss(*args, **kwargs)
        return loss + self.added(loss) if self.calls == BROKEN else loss

    def added(self, loss: torch.Tensor) -> torch.Tensor:
        return (loss * 0.0).log()


class BadGradient(BadLoss):
    def added(self, loss: torch.Tensor) -> torch.Tensor:
        return (loss * 0.0).sqrt()


class OnlyHead(Trainer):
    """The gradient of the head's bias alone is NaN, in one step."""

    calls = 0

    def compute_loss(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(model, *args, **kwargs)
        self.calls += 1
        return loss if self.calls < BROKEN else loss + model.head.bias.sum() * nan


SCENES: dict[str, tuple[Break, str, str]] = {
    "NaN in the batch": (
        lambda: {"trainer_settings": {"data_collator": BadBatch()}},
        "inputs",
        "inputs",
    ),
    "a broken weight": (lambda: {"callbacks": [BadWeight()]}, "parameters", "parameters"),
    "the log of zero": (lambda: {"trainer_class": BadLoss}, "loss", "loss_function"),
    "the root of zero": (lambda: {"trainer_class": BadGradient}, "gradients", "backward"),
}


def broken_trainer(folder: Path, watching: TrainerCallback | None, scene: str) -> Trainer:
    settings = SCENES[scene][0]()
    callbacks = settings.pop("callbacks", [])
    if watching is not None:
        callbacks = [watching, *callbacks]
    return make_trainer(
        folder, *callbacks, model=SmallNet(), data=Measurements(), max_steps=LAST, **settings
    )


def reports_in(folder: Path) -> list[Report]:
    return [read_report(path) for path in sorted(folder.glob("*.json"))]


def watched(folder: Path, scene: str, **settings: Any) -> tuple[Trainer, RecordingExporter]:
    exporter = RecordingExporter(**settings)
    trainer = broken_trainer(folder, PrometheusCallback(exporter), scene)
    trainer.train()
    return trainer, exporter


def no_errors(exporter: RecordingExporter) -> bool:
    return not any(exporter.health.errors.values())


@values_at_once
@pytest.mark.parametrize("scene", SCENES)
def test_a_training_that_breaks_is_explained(
    scene: str, tmp_path: Path, logs: pytest.LogCaptureFixture
) -> None:
    """One report below the output folder, with the right source and cause; log and metrics too."""
    _, source, cause = SCENES[scene]

    trainer, exporter = watched(tmp_path, scene)

    folder = Path(str(trainer.args.output_dir)) / "_training-exporter-reports"
    [found] = reports_in(folder)
    assert (found.step, found.source, likely_causes(found)[0].name) == (BROKEN, source, cause)
    assert [row.step for row in found.steps] == list(range(1, BROKEN + 1))
    assert found.about.model == "SmallNet"
    assert found.parameters is not None
    assert found.parameters.before_update
    assert bool(found.parameters.bad) == (source == "parameters")
    assert found.gaps != ()
    [line] = [one for one in logs.records if "explain" in one.getMessage()]
    assert line.levelname == "WARNING"
    assert str(next(folder.iterdir())) in line.getMessage()
    for name in NON_FINITE_SOURCES:
        assert exporter.value("training_non_finite_source", source=name) == (name == source)
    assert exporter.value("training_non_finite_reports_total") == 1
    assert no_errors(exporter)


@values_at_once
def test_gradients_are_those_before_the_clip(tmp_path: Path) -> None:
    """Clipping spreads a NaN to all of them; a NaN of the head alone is the head's."""

    exporter = RecordingExporter(forensics_dir=str(tmp_path / "reports"))
    make_trainer(
        tmp_path, PrometheusCallback(exporter), model=SmallNet(), data=Measurements(),
        max_steps=BROKEN, trainer_class=OnlyHead,
    ).train()  # fmt: skip

    [found] = reports_in(tmp_path / "reports")
    assert found.gradients is not None
    assert [tensor.name for tensor in found.gradients.worst] == ["head.bias"]


def test_a_nan_in_one_of_two_micro_batches_is_found(tmp_path: Path) -> None:
    """The micro-batch is named."""
    exporter = RecordingExporter(forensics_dir=str(tmp_path / "reports"))
    make_trainer(
        tmp_path, PrometheusCallback(exporter), model=SmallNet(), data=Measurements(),
        gradient_accumulation_steps=2, max_steps=LAST,
        trainer_settings={"data_collator": BadBatch()},
    ).train()  # fmt: skip

    [found] = reports_in(tmp_path / "reports")
    assert (found.step, found.source) == (BROKEN / 2, "inputs")
    assert found.inputs is not None
    assert [tensor.name for tensor in found.inputs.worst] == ["micro-batch 2, values"]


def test_not_again_within_the_quiet_steps(tmp_path: Path) -> None:
    """A NaN that stays is reported again only after them."""
    settings = {"forensics_quiet_steps": 3, "forensics_dir": str(tmp_path / "reports")}

    _, exporter = watched(tmp_path, "a broken weight", **settings)

    assert [found.step for found in reports_in(tmp_path / "reports")] == [BROKEN, BROKEN + 3]
    assert exporter.value("training_non_finite_reports_total") == 2


@values_at_once
def test_another_training_is_not_silenced_by_the_one_before(tmp_path: Path) -> None:
    """The same callback may train twice, and each training has its first NaN."""
    exporter = RecordingExporter(forensics_dir=str(tmp_path / "reports"))
    callback = PrometheusCallback(exporter)
    for _ in range(2):
        broken_trainer(tmp_path, callback, "the log of zero").train()

    found = reports_in(tmp_path / "reports")
    assert [one.step for one in found] == [BROKEN, BROKEN]
    assert all(one.gradients is not None for one in found)


def test_a_healthy_run_leaves_nothing_behind(tmp_path: Path) -> None:
    """No report, no folder, no source; the counter is there."""
    _, exporter = trained(tmp_path)

    assert list(tmp_path.rglob("*report*")) == []
    assert exporter.status.report is None
    assert exporter.value("training_non_finite_reports_total") == 0
    assert exporter.value("training_non_finite_source", source="loss") is None


def test_it_can_be_switched_off(tmp_path: Path) -> None:
    """Then nothing is written, and nothing of the batches is kept."""
    exporter = RecordingExporter(forensics=False)
    callback = PrometheusCallback(exporter)

    broken_trainer(tmp_path, callback, "a broken weight").train()

    assert list(tmp_path.rglob("*report*")) == []
    assert callback._nans._inspector is None


def test_a_folder_that_cannot_be_written_hurts_nobody(
    tmp_path: Path, logs: pytest.LogCaptureFixture
) -> None:
    """An error is counted, the log still tells the cause, and the training goes on."""
    (tmp_path / "taken").write_text("a file is no folder")

    trainer, exporter = watched(tmp_path, "NaN in the batch", forensics_dir=str(tmp_path / "taken"))

    assert trainer.state.global_step == LAST
    assert exporter.health.errors["step"] == 1
    assert exporter.value("training_non_finite_source", source="inputs") == 1
    assert exporter.status.report is not None
    assert exporter.status.report.path is None
    assert any("the batch holds NaN" in record.getMessage() for record in logs.records)


@pytest.mark.parametrize("hooks", [False, True])
@pytest.mark.parametrize("scene", SCENES)
def test_a_look_changes_nothing(scene: str, hooks: bool, tmp_path: Path) -> None:
    """Weights after a broken training are the same bit by bit, NaN included."""
    plain = broken_trainer(tmp_path, None, scene)
    plain.train()

    trainer, exporter = watched(
        tmp_path, scene, forensics_hooks=hooks, forensics_dir=str(tmp_path / "reports")
    )

    assert_same_weights(weights(trainer.model), weights(plain.model))
    assert len(reports_in(tmp_path / "reports")) == 1
    assert no_errors(exporter)


def test_hooks_name_the_first_module(tmp_path: Path) -> None:
    """In the very step, before anything else was broken by it; and they are gone afterwards."""
    trainer, _ = watched(
        tmp_path, "a broken weight", forensics_hooks=True, forensics_dir=str(tmp_path / "reports")
    )

    [found] = reports_in(tmp_path / "reports")
    assert found.first_module is not None
    assert (found.first_module.name, found.first_module.step) == ("head", BROKEN)
    assert found.first_module.inputs_finite
    assert all(not module._forward_hooks for module in trainer.model.modules())


def test_hooks_that_fail_hurt_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They run in the forward pass of the user."""

    def planted(*_: object) -> None:
        raise LookupError("planted")

    monkeypatch.setattr("training_exporter.device.modules.count_non_finite", planted)
    exporter = RecordingExporter(forensics_hooks=True)

    trainer = make_trainer(tmp_path, PrometheusCallback(exporter))
    trainer.train()

    assert trainer.state.global_step == STEPS
    assert exporter.health.errors["step"] > 0


# A device that is behind


class Late:
    """A callback to which every tensor lies on a device that is behind."""

    def __init__(self, exporter: RecordingExporter) -> None:
        self.device = LateDevice()
        self.callback = PrometheusCallback(exporter)
        self.callback._recorder = self.device.recorder()
        layers: Any = self.callback._layers
        layers._new_pass = lambda model: late(self.device, model)
        self.nans: Any = self.callback._nans
        self.nans._inspector = Inspector(open_backend=lambda _: self.device)
        self.nans._is_broken = lambda _: False  # as for what must be waited for


class Advance(TrainerCallback):
    """Lets the device do some of its copies in each step."""

    def __init__(self, device: LateDevice) -> None:
        self.device = device
        self.waits = 0

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.waits = self.device.waits
        if self.device.behind > 1:
            self.device.advance()


def test_a_late_device_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch is still known when the NaN is; the report comes once the counts are there."""
    monkeypatch.setattr("training_exporter.device.kept_inputs._in_host_memory", lambda _: False)
    exporter = RecordingExporter(forensics_dir=str(tmp_path / "reports"))
    behind = Late(exporter)
    advance = Advance(behind.device)
    trainer = broken_trainer(tmp_path, behind.callback, "NaN in the batch")
    trainer.add_callback(advance)

    trainer.train()

    [found] = reports_in(tmp_path / "reports")
    assert (found.step, found.source) == (BROKEN, "inputs")
    assert advance.waits == 0
    assert no_errors(exporter)


@pytest.mark.parametrize("steps_after", [0, 1])
def test_a_nan_in_the_last_steps_of_a_late_device_has_its_first_layer(
    steps_after: int, tmp_path: Path
) -> None:
    """Though step, layers and counts are all on their way when the training ends."""
    exporter = RecordingExporter(forensics_dir=str(tmp_path / "reports"), layer_interval=1)
    behind = Late(exporter)
    make_trainer(
        tmp_path, behind.callback, model=SmallNet(), data=Measurements(),
        max_steps=BROKEN + steps_after, trainer_class=OnlyHead,
    ).train()  # fmt: skip

    [found] = reports_in(tmp_path / "reports")
    assert (found.step, found.first_layer) == (BROKEN, "head")
    assert exporter.value("training_first_non_finite_layer_step", layer="head") == BROKEN
    assert no_errors(exporter)


def test_layers_that_fail_take_nothing_else_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps are handed on and the report is written all the same; the errors are counted."""

    def planted(*_: object, **__: object) -> None:
        raise LookupError("planted")

    monkeypatch.setattr("training_exporter.device.layers.LayerPass.collect", planted)
    _, exporter = watched(
        tmp_path, "NaN in the batch", forensics_dir=str(tmp_path / "reports"), layer_interval=1
    )

    [found] = reports_in(tmp_path / "reports")
    assert (found.step, found.source, found.first_layer) == (BROKEN, "inputs", None)
    assert [step.step for step in exporter.steps] == list(range(1, LAST + 1))
    assert exporter.health.errors["step"] == LAST + 1


def test_a_crash_with_an_open_investigation_is_written_without_waiting(tmp_path: Path) -> None:
    """The device may hang: what it did not say is a gap, and the numbers of the steps are there."""

    class Crashing(Trainer):
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            if self.state.global_step == BROKEN:
                behind.device.advance(behind.device.behind)  # the event is known ...
                behind.nans.hand_on(behind.callback._recorder)  # ... its counts are on the way
                raise ZeroDivisionError("planted")
            return super().training_step(*args, **kwargs)

    exporter = RecordingExporter(forensics_dir=str(tmp_path / "reports"))
    behind = Late(exporter)
    trainer = make_trainer(
        tmp_path, behind.callback, BadWeight(), model=SmallNet(), data=Measurements(),
        max_steps=LAST, trainer_class=Crashing,
    )  # fmt: skip

    with pytest.raises(ZeroDivisionError):
        trainer.train()

    [found] = reports_in(tmp_path / "reports")
    assert found.step == BROKEN
    assert found.inputs is None
    assert {gap.what for gap in found.gaps} >= {"inputs", "parameters", "gradients"}
    assert behind.device.waits == 0
    assert exporter.status.state == "crashed"


def test_nothing_is_held_after_the_training(tmp_path: Path) -> None:
    """Neither batches nor what watched the model."""
    callback = PrometheusCallback(RecordingExporter(forensics_hooks=True))
    trainer = broken_trainer(tmp_path, callback, "a broken weight")
    trainer.train()
    nans: NanWatch = callback._nans

    assert nans._inspector is None
    assert nans._modules is None
