# SPDX-License-Identifier: Apache-2.0
"""What must hold on every supported release of transformers; `make matrix` runs it on each."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from torch import nn
from transformers import Trainer

from tests.integration.tiny import (
    ON_CUDA,
    STEPS,
    LayerRecorder,
    RecordingExporter,
    Rows,
    StreamedRows,
    TupleModel,
    assert_like_the_log,
    assert_same_weights,
    make_trainer,
    step_logs,
    supervised_trainer,
    tiny_model,
    trained,
    weights,
)
from training_exporter.integrations.huggingface import PrometheusCallback


class WithAuxiliaryLoss(Trainer):
    """Adds a term that the model knows nothing of."""

    def compute_loss(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(model, *args, **kwargs)
        return loss + 0.01 * sum(weight.square().mean() for weight in model.parameters())


class Poisoned(Trainer):
    """The loss of the third step is NaN; its gradients are not."""

    calls = 0

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return super().compute_loss(*args, **kwargs) + (math.nan if self.calls == 3 else 0.0)


class Failing(Trainer):
    """Fails in the third step."""

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 2:
            raise ZeroDivisionError("planted")
        return super().training_step(*args, **kwargs)


def with_lora() -> nn.Module:
    try:
        import peft
    except ImportError as error:
        pytest.skip(f"peft cannot be imported: {error}")
    return peft.get_peft_model(  # type: ignore[no-any-return]
        tiny_model(), peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    )


CONFIGURATIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "plain": dict,
    "accumulation": lambda: {"gradient_accumulation_steps": 4, "max_grad_norm": 0.1},
    "label_smoothing": lambda: {"label_smoothing_factor": 0.1, "gradient_accumulation_steps": 2},
    "compute_loss": lambda: {"trainer_class": WithAuxiliaryLoss, "gradient_accumulation_steps": 2},
    "lora": lambda: {"model": with_lora(), "gradient_accumulation_steps": 2},
    "tuple_model": lambda: {"model": TupleModel(), "gradient_accumulation_steps": 2},
    "streamed": lambda: {"data": StreamedRows(), "gradient_accumulation_steps": 2},
    "no_clipping": lambda: {"max_grad_norm": 0.0},
    "torch_compile": lambda: {"torch_compile": True, "torch_compile_backend": "eager"},
}


def test_this_is_the_release_that_was_asked_for() -> None:
    """A matrix that tests the same release four times proves nothing."""
    assert transformers.__version__ == os.environ.get("MATRIX_RELEASE", transformers.__version__)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_each_step_is_as_the_trainer_logs_it(name: str, tmp_path: Path) -> None:
    """Loss, gradient norm before clipping and learning rate."""
    trainer, exporter = trained(tmp_path, **CONFIGURATIONS[name]())

    assert_like_the_log(trainer, exporter)
    assert exporter.snapshot.totals.samples == STEPS * 4 * trainer.args.gradient_accumulation_steps


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_layers_are_the_whole(name: str, tmp_path: Path) -> None:
    """The root of the sum of their squares is the gradient norm of each step, before clipping and
    with the gradients of all micro-batches."""
    exporter = LayerRecorder()
    make_trainer(tmp_path, PrometheusCallback(exporter), **CONFIGURATIONS[name]()).train()

    readings = {view.reading.step: view.reading for view in exporter.views}
    norms = {signals.step: signals.grad_norm for signals in exporter.steps}
    assert list(norms) == list(range(1, STEPS + 1))
    # Of passes that come from a GPU together, the page shows the last one.
    assert readings.keys() <= norms.keys() if ON_CUDA else readings.keys() == norms.keys()
    for step, reading in readings.items():
        assert math.hypot(*filter(None, reading.grad_norm)) == pytest.approx(norms[step], rel=1e-5)
    assert all(filter(None, exporter.views[0].reading.update_ratio))
    assert not any(exporter.health.errors.values())


def test_supervised_fine_tuning_by_trl(tmp_path: Path) -> None:
    """The trainer that most people meet the Trainer in."""
    exporter = RecordingExporter()
    trainer = supervised_trainer(tmp_path, PrometheusCallback(exporter))

    trainer.train()

    assert_like_the_log(trainer, exporter)


def test_the_gradient_norm_without_clipping(tmp_path: Path) -> None:
    """Known although some releases compute none then: that of a clipping which never clips."""
    _, unclipped = trained(tmp_path, max_grad_norm=0.0, gradient_accumulation_steps=2)
    _, clipped = trained(tmp_path, max_grad_norm=1e9, gradient_accumulation_steps=2)

    assert [signals.grad_norm for signals in unclipped.steps] == pytest.approx(
        [signals.grad_norm for signals in clipped.steps], rel=1e-5
    )


def test_nan_arrives_though_the_log_hides_it(tmp_path: Path) -> None:
    """With the filter on, as it is by default."""
    trainer, exporter = trained(tmp_path, trainer_class=Poisoned, logging_nan_inf_filter=True)

    assert step_logs(trainer)[2]["loss"] == 0.0
    assert math.isnan(exporter.steps[2].loss or 0.0)
    assert exporter.value("training_logging_nan_inf_filter") == 1


def test_evaluation_and_saving(tmp_path: Path) -> None:
    """Two sets, checkpoints, a stand-alone evaluation: results by set, time in the pauses."""
    trainer, exporter = trained(
        tmp_path,
        eval_data={"a": Rows(4), "my/b": Rows(8)},
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
    )
    logged = {}
    for entry in trainer.state.log_history:
        logged.update({name: value for name, value in entry.items() if name.endswith("_loss")})
    trainer.evaluate(Rows(4), metric_key_prefix="test")
    seen = exporter.snapshot.evaluations

    assert_like_the_log(trainer, exporter)
    assert (seen["a"].loss, seen["my/b"].loss) == (logged["eval_a_loss"], logged["eval_my/b_loss"])
    assert (seen["a"].step, seen["test"].step) == (STEPS, STEPS)
    assert all(seconds > 0 for seconds in exporter.status.pauses.values())
    assert not any("eval" in name or "test" in name for name in exporter.status.logged)
    assert exporter.status.run == "tiny-run"
    assert exporter.status.state == "completed"


def test_a_crash(tmp_path: Path) -> None:
    """The user's exception goes its way, and the run is crashed."""
    exporter = RecordingExporter()
    trainer = make_trainer(tmp_path, PrometheusCallback(exporter), trainer_class=Failing)

    with pytest.raises(ZeroDivisionError, match="planted"):
        trainer.train()

    assert (exporter.status.state, exporter.status.failure) == ("crashed", "ZeroDivisionError")
    assert len(exporter.steps) == 2


def test_a_callback_added_late_and_training_twice(tmp_path: Path) -> None:
    """The trainer is found when the training begins, and is wrapped once."""
    exporter = RecordingExporter()
    trainer = make_trainer(tmp_path)
    trainer.add_callback(PrometheusCallback(exporter))

    trainer.train()
    trainer.train()

    assert exporter.snapshot.totals.samples == 2 * STEPS * 4
    del exporter.steps[:STEPS]
    assert_like_the_log(trainer, exporter)


def test_the_training_is_the_same_bit_by_bit(tmp_path: Path) -> None:
    """With us and without."""
    with_us, _ = trained(tmp_path, gradient_accumulation_steps=2, max_grad_norm=0.1)
    without = make_trainer(tmp_path, gradient_accumulation_steps=2, max_grad_norm=0.1)
    without.train()

    assert_same_weights(weights(with_us.model), weights(without.model))
