# SPDX-License-Identifier: Apache-2.0
"""The layers of a model in a real Trainer's run."""

from __future__ import annotations

import json
from math import hypot, isnan, nan
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback

from tests.integration.test_trainer_versions import with_lora
from tests.integration.tiny import (
    STEPS,
    LayerRecorder,
    make_trainer,
    step_logs,
    tiny_model,
    values_at_once,
)
from training_exporter.integrations.huggingface import PrometheusCallback


def watched(folder: Path, exporter: LayerRecorder, **changed: Any) -> Trainer:
    trainer = make_trainer(folder, PrometheusCallback(exporter), **changed)
    trainer.train()
    assert not any(exporter.health.errors.values())
    return trainer


def total(values: Any) -> float:
    return hypot(*[value for value in values if value is not None])


def test_norms_as_the_trainer_logs_them(tmp_path: Path) -> None:
    """The same against the Trainer's own log, which we do not touch."""
    exporter = LayerRecorder()
    trainer = watched(tmp_path, exporter, max_grad_norm=0.1)

    assert [total(view.reading.grad_norm) for view in exporter.views] == pytest.approx(
        [entry["grad_norm"] for entry in step_logs(trainer)], rel=1e-4
    )


def test_only_due_steps(tmp_path: Path) -> None:
    """The first step, and then each third."""
    exporter = LayerRecorder(layer_interval=3)
    watched(tmp_path, exporter)

    assert [view.reading.step for view in exporter.views] == [1, 4]
    assert exporter.value("training_layer_step") == 4


def test_turned_off(tmp_path: Path) -> None:
    """An interval of 0 leaves no trace."""
    exporter = LayerRecorder(layer_interval=0)
    watched(tmp_path, exporter)

    assert exporter.views == []
    assert exporter.value("training_layer_step") is None


def test_what_a_step_changed(tmp_path: Path) -> None:
    """The update ratio of the first step is that of the weights before and after it."""
    before = {name: value.clone() for name, value in tiny_model().named_parameters()}
    exporter = LayerRecorder(layer_grouping="parameter")
    trainer = watched(tmp_path, exporter, max_steps=1)
    after = {name: value.cpu() for name, value in trainer.model.named_parameters()}

    reading = exporter.views[0].reading
    ratios = dict(zip(reading.layers, reading.update_ratio, strict=True))
    name = "model.layers.1.mlp.down_proj.weight"
    expected = (after[name] - before[name]).norm() / before[name].norm()
    assert ratios["L1.mlp.down.weight"] == pytest.approx(float(expected.detach()), rel=1e-4)


def test_what_is_frozen_has_no_layer(tmp_path: Path) -> None:
    """With LoRA only the adapters are trained."""
    exporter = LayerRecorder(layer_grouping="module")
    trainer = watched(tmp_path, exporter, model=with_lora())

    layers = exporter.views[-1].reading.layers
    assert layers
    assert all("lora" in layer for layer in layers)
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    assert len(layers) == len(trained)


def poisoned_in(layer: int, call: int) -> torch.nn.Module:
    """A model of which one linear map gets a NaN into its gradients, at some backward pass."""
    model = tiny_model()
    calls = iter(range(1, 1000))

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        return gradient * nan if next(calls) == call else gradient

    model.model.layers[layer].mlp.down_proj.weight.register_hook(spoil)
    return model


def test_the_layer_with_the_nan_is_named(tmp_path: Path, logs: pytest.LogCaptureFixture) -> None:
    """By name, with its step, and it alone is counted."""
    exporter = LayerRecorder()
    watched(tmp_path, exporter, model=poisoned_in(0, call=2), max_steps=2)

    layer = "L0.mlp.down"
    assert exporter.value("training_first_non_finite_layer_step", layer=layer) == 2
    assert exporter.value("training_layer_non_finite_total", layer=layer) == 1
    assert exporter.value("training_layer_non_finite_total", layer="L1.mlp.down") == 0
    assert isnan(exporter.value("training_layer_grad_norm", layer=layer) or 0.0)
    assert [layer in record.getMessage() for record in logs.records if "first" in record.msg] == [
        True
    ]


def test_the_report_on_a_nan_names_the_layer(tmp_path: Path) -> None:
    """The forensics ask the pass of that very step."""
    exporter = LayerRecorder(forensics_dir=str(tmp_path / "reports"))
    watched(tmp_path, exporter, model=poisoned_in(0, call=2), max_steps=2)

    (report,) = (tmp_path / "reports").glob("*.json")
    assert json.loads(report.read_text())["first_layer"] == "L0.mlp.down"


def test_the_first_layer_is_not_guessed(tmp_path: Path) -> None:
    """A NaN in a step without a pass has gone into all weights by the next one."""
    exporter = LayerRecorder(layer_interval=3)
    watched(tmp_path, exporter, model=poisoned_in(0, call=2))

    last = exporter.views[-1]
    assert last.reading.step == STEPS
    assert sum(map(bool, last.non_finite)) > 1
    assert last.first is None


class Scaled(TrainerCallback):
    """Lets the Trainer scale losses, and unscale gradients, as it does for fp16 on a GPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.trainer: Any = None
        self._monkeypatch = monkeypatch

    def prepare(self, trainer: Any) -> None:
        self.trainer = trainer
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        accelerator = self.trainer.accelerator
        self._monkeypatch.setattr(accelerator, "native_amp", True)
        self._monkeypatch.setitem(accelerator.state._shared_state, "_mixed_precision", "fp16")


@values_at_once
@pytest.mark.parametrize("clip", [0.0, 0.1])
def test_the_loss_scale_is_taken_out(
    clip: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in fp16: gradients are multiplied by the scale until the clipping has divided by it."""
    plain = LayerRecorder()
    watched(tmp_path, plain, max_grad_norm=clip)
    exporter, scaled = LayerRecorder(), Scaled(monkeypatch)
    trainer = make_trainer(tmp_path, PrometheusCallback(exporter), scaled, max_grad_norm=clip)
    scaled.prepare(trainer)

    trainer.train()

    assert exporter.steps[0].loss_scale == 1024.0
    assert not any(exporter.health.errors.values())
    for scaled_view, view in zip(exporter.views, plain.views, strict=True):
        assert scaled_view.reading.grad_norm == pytest.approx(view.reading.grad_norm, rel=1e-4)


@pytest.mark.parametrize(("clip", "layer_interval"), [(0.0, 0), (0.1, 1)])
def test_values_by_magnitude(
    clip: float, layer_interval: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each value is counted, on due steps, before the clipping and without the loss scale; with or
    without passes over the layers."""
    pages = []
    for scaled in (False, True):
        exporter = LayerRecorder(layer_interval=layer_interval, gradient_histogram_interval=3)
        scaling = Scaled(monkeypatch)
        trainer = make_trainer(tmp_path, PrometheusCallback(exporter), max_grad_norm=clip)
        if scaled:
            trainer.add_callback(scaling)
            scaling.prepare(trainer)
        trainer.train()
        assert not any(exporter.health.errors.values())
        pages.append(exporter)
    plain, scaled_page = pages
    number = sum(parameter.numel() for parameter in trainer.model.parameters())
    name = "training_gradient_magnitude"

    assert [page.value(f"{name}_count") for page in pages] == [2 * number] * 2  # steps 1 and 4
    sums = [page.value(f"{name}_sum") for page in pages]
    assert sums[1] == pytest.approx(sums[0], rel=1e-3)
    assert (plain.value("training_gradient_subnormal_ratio") or 0.0) > 2 * (
        scaled_page.value("training_gradient_subnormal_ratio") or 0.0
    )


def test_values_are_not_counted_by_default(tmp_path: Path) -> None:
    """Nothing is made for it, and nothing shown."""
    exporter = LayerRecorder()
    callback = PrometheusCallback(exporter)
    make_trainer(tmp_path, callback).train()

    assert [each._survey for each in callback._layers._surveys if each._survey] == []
    assert exporter.value("training_gradient_zero_ratio") is None
