# SPDX-License-Identifier: Apache-2.0
"""What the callback exports of a real Trainer's steps and evaluations is true.

The measure is the Trainer's own log, with `logging_steps=1` and its NaN filter off.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainerCallback

from tests.integration.tiny import (
    STEPS,
    RecordingExporter,
    Rows,
    StreamedRows,
    TupleModel,
    assert_like_the_log,
    make_trainer,
    step_logs,
    supervised_trainer,
    tiny_model,
    tokenizer,
    trained,
    trl_settings,
)
from training_exporter.integrations.huggingface import PrometheusCallback


class WithAuxiliaryLoss(Trainer):
    """Adds a term that the model knows nothing of, and pops its inputs."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        batch = {name: inputs.pop(name) for name in list(inputs)}
        loss = super().compute_loss(model, batch, *args, **kwargs)
        return loss + 0.01 * sum(weight.square().mean() for weight in model.parameters())


class Poisoned(Trainer):
    """Adds `poison` to the loss of the third step; the gradients stay as they are."""

    poison = math.nan
    calls = 0

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return super().compute_loss(*args, **kwargs) + (self.poison if self.calls == 3 else 0.0)


class PoisonedInf(Poisoned):
    poison = math.inf


def summed_cross_entropy(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
    """A loss function of the user's own."""
    logits = outputs.logits[:, :-1].flatten(0, 1)
    return nn.functional.cross_entropy(logits, labels[:, 1:].flatten())


def with_lora() -> nn.Module:
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(  # type: ignore[no-any-return]
        tiny_model(), peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    )


CONFIGURATIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "plain": dict,
    "accumulation": lambda: {"gradient_accumulation_steps": 4},
    "label_smoothing": lambda: {"label_smoothing_factor": 0.1, "gradient_accumulation_steps": 2},
    "compute_loss_func": lambda: {
        "trainer_settings": {"compute_loss_func": summed_cross_entropy},
        "gradient_accumulation_steps": 2,
    },
    "compute_loss": lambda: {
        "trainer_class": WithAuxiliaryLoss,
        "gradient_accumulation_steps": 2,
    },
    "lora": lambda: {"model": with_lora(), "gradient_accumulation_steps": 2},
    "torch_compile": lambda: {"torch_compile": True, "torch_compile_backend": "eager"},
    "gradient_checkpointing": lambda: {
        "gradient_checkpointing": True,
        "gradient_accumulation_steps": 2,
    },
    "bf16": lambda: {"bf16": True, "gradient_accumulation_steps": 2},
    "no_clipping": lambda: {"max_grad_norm": 0.0},
    "hard_clipping": lambda: {"max_grad_norm": 0.01},
    "tuple_model": lambda: {"model": TupleModel(), "gradient_accumulation_steps": 4},
    "streamed": lambda: {"data": StreamedRows(), "gradient_accumulation_steps": 2},
    # 24 rows are 6 batches: of each pass 2 are left over, and count for the next step.
    "streamed_with_a_rest": lambda: {
        "data": StreamedRows(24),
        "gradient_accumulation_steps": 4,
    },
    "token_counting": lambda: {
        "include_num_input_tokens_seen": "non_padding",
        "gradient_accumulation_steps": 2,
    },
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_each_step_is_as_the_trainer_logs_it(name: str, tmp_path: Path) -> None:
    """Loss, gradient norm before clipping and learning rate, whatever makes the loss."""
    trainer, exporter = trained(tmp_path, **CONFIGURATIONS[name]())

    assert_like_the_log(trainer, exporter)


def test_tokens_and_samples_of_a_step_are_those_of_its_micro_batches(tmp_path: Path) -> None:
    """Padding is no token, and a compute_loss that empties its inputs hides nothing."""
    trainer, exporter = trained(
        tmp_path,
        trainer_class=WithAuxiliaryLoss,
        gradient_accumulation_steps=4,
        include_num_input_tokens_seen="non_padding",
    )

    assert [signals.samples for signals in exporter.steps] == [16] * STEPS
    assert exporter.snapshot.totals.tokens == trainer.state.num_input_tokens_seen


def test_what_else_a_step_says(tmp_path: Path) -> None:
    """Epoch, planned end, clip threshold; no skip and no loss scale without mixed precision."""
    _, exporter = trained(tmp_path, max_grad_norm=0.25)
    last = exporter.steps[-1]

    assert (last.step, last.max_steps, last.clip_threshold) == (STEPS, STEPS, 0.25)
    assert last.epoch == pytest.approx(STEPS / 16)
    assert (last.skipped, last.loss_scale) == (False, None)
    assert exporter.value("training_steps_total") == STEPS
    assert exporter.value("training_run_info", **exporter.status.info) == 1
    assert exporter.status.info["model"] == "LlamaForCausalLM"


@pytest.mark.parametrize("poisoned", [Poisoned, PoisonedInf])
def test_what_the_trainers_filter_hides_arrives(poisoned: type[Poisoned], tmp_path: Path) -> None:
    """The log says 0.0, the exporter says what was, and that the filter is on."""
    trainer, exporter = trained(tmp_path, trainer_class=poisoned, logging_nan_inf_filter=True)
    loss = exporter.steps[2].loss

    assert step_logs(trainer)[2]["loss"] == 0.0
    assert loss == pytest.approx(poisoned.poison, nan_ok=True)
    assert math.isfinite(exporter.steps[3].loss or math.nan)
    assert exporter.value("training_non_finite_steps_total", signal="loss") == 1
    assert exporter.value("training_anomalies_total", kind="non_finite") == 1
    assert exporter.value("training_logging_nan_inf_filter") == 1


def test_the_page_says_when_the_filter_is_off(tmp_path: Path) -> None:
    """The log is then as true as the page."""
    trainer, exporter = trained(tmp_path, trainer_class=Poisoned)

    assert math.isnan(step_logs(trainer)[2]["loss"])
    assert exporter.value("training_logging_nan_inf_filter") == 0


def test_the_loss_is_there_on_steps_that_are_not_logged(tmp_path: Path) -> None:
    """Each optimiser step, not each logging step."""
    trainer, exporter = trained(tmp_path, logging_steps=1000)

    assert step_logs(trainer) == []
    assert all(math.isfinite(signals.loss or math.nan) for signals in exporter.steps)
    assert len(exporter.steps) == STEPS


def test_what_else_is_logged_is_exported_by_name(tmp_path: Path) -> None:
    """Numbers a user logs, and the Trainer's own summary; not what the steps say better."""

    class Logging(Trainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            self.log({"rewards/<lambda>/mean": 0.5, "note": "fine", "nothing": None})
            return super().compute_loss(*args, **kwargs)

    _, exporter = trained(tmp_path, trainer_class=Logging)

    assert exporter.value("training_logged_value", name="rewards/<lambda>/mean") == 0.5
    assert set(exporter.status.logged) >= {"train_loss", "train_runtime"}
    assert not set(exporter.status.logged) & {"loss", "grad_norm", "learning_rate", "note"}


# Evaluation


def evaluation_metrics(prediction: Any) -> dict[str, Any]:
    return {"accuracy": 0.25, "missing": None, "remark": "a string"}


def test_an_evaluation_while_training(tmp_path: Path) -> None:
    """Loss and metrics of the step it ran after; what is no number is left out."""
    trainer, exporter = trained(
        tmp_path,
        eval_data=Rows(8),
        eval_strategy="steps",
        eval_steps=2,
        trainer_settings={"compute_metrics": evaluation_metrics},
    )
    logged = [entry for entry in trainer.state.log_history if "eval_loss" in entry][-1]
    seen = exporter.snapshot.evaluations["eval"]

    assert (seen.step, seen.loss) == (4, logged["eval_loss"])
    assert seen.metrics["accuracy"] == 0.25
    assert set(seen.metrics) == {
        "accuracy", "runtime", "samples_per_second", "steps_per_second",
    }  # fmt: skip
    assert not any(name.startswith("eval_") for name in exporter.status.logged)
    assert len(exporter.steps) == STEPS
    assert_like_the_log(trainer, exporter)


def test_several_sets_are_told_apart(tmp_path: Path) -> None:
    """By their own names, however odd, each with its own loss."""
    names = ["my/set name", "β", "eval_loss", 'quo"te\n']
    trainer, exporter = trained(
        tmp_path,
        eval_data={name: Rows(4 * (1 + number)) for number, name in enumerate(names)},
        eval_strategy="steps",
        eval_steps=4,
    )
    logged = {
        name: entry[f"eval_{name}_loss"]
        for name in names
        for entry in trainer.state.log_history
        if f"eval_{name}_loss" in entry
    }

    assert {
        name: evaluation.loss for name, evaluation in exporter.snapshot.evaluations.items()
    } == logged
    assert exporter.value("training_eval_loss", dataset="my/set name") == logged["my/set name"]


def test_an_evaluation_before_the_first_step(tmp_path: Path) -> None:
    """`eval_on_start` is step 0, and the run then goes on as running."""
    trainer, exporter = trained(
        tmp_path, eval_data=Rows(4), eval_strategy="steps", eval_steps=100, eval_on_start=True
    )

    assert [evaluation.step for evaluation in exporter.evaluations] == [0, STEPS]
    assert exporter.status.state == "completed"
    assert_like_the_log(trainer, exporter)


def test_an_evaluation_without_any_training(tmp_path: Path) -> None:
    """A trainer that only evaluates shows its results, and is no finished run."""
    exporter = RecordingExporter()
    trainer = make_trainer(tmp_path, PrometheusCallback(exporter), eval_data=Rows(8))

    results = trainer.evaluate()
    trainer.evaluate(Rows(4), metric_key_prefix="test")
    trainer.predict(Rows(4))

    assert exporter.value("training_eval_loss", dataset="eval") == results["eval_loss"]
    assert exporter.snapshot.evaluations["test"].loss is not None
    assert exporter.status.state == "starting"
    assert exporter.status.logged == {}
    assert exporter.value("training_loss") is None


def test_an_evaluation_after_the_training(tmp_path: Path) -> None:
    """The run stays completed, and the results are an evaluation, not logged values."""
    trainer, exporter = trained(tmp_path, eval_data=Rows(8))

    results = trainer.evaluate()

    assert exporter.status.state == "completed"
    assert exporter.snapshot.evaluations["eval"].loss == results["eval_loss"]
    assert exporter.snapshot.evaluations["eval"].step == STEPS
    assert not any(name.startswith("eval_") for name in exporter.status.logged)


def test_the_state_while_evaluating_and_saving(tmp_path: Path) -> None:
    """What the run does now can be seen from outside."""
    exporter = RecordingExporter()
    seen = {}

    class Witness(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            seen["step"] = exporter.status.state

        def on_prediction_step(self, *args: Any, **kwargs: Any) -> None:
            seen["evaluation"] = exporter.status.state

        def on_save(self, *args: Any, **kwargs: Any) -> None:
            seen["save"] = exporter.status.state

    make_trainer(
        tmp_path, PrometheusCallback(exporter), Witness(),
        eval_data=Rows(4), eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2,
    ).train()  # fmt: skip

    assert seen == {"step": "running", "evaluation": "evaluating", "save": "saving"}
    assert exporter.status.state == "completed"


# TRL


def test_trl_supervised_fine_tuning(tmp_path: Path) -> None:
    """TRL's SFT trainer has values of its own, which are exported by name."""
    exporter = RecordingExporter()

    supervised_trainer(tmp_path, PrometheusCallback(exporter)).train()

    assert "mean_token_accuracy" in exporter.status.logged
    assert exporter.snapshot.totals.samples == STEPS * 8


def test_trl_preference_optimisation(tmp_path: Path) -> None:
    """TRL's DPO trainer, whose loss is none of the model's own."""
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    exporter = RecordingExporter()
    pairs = [
        {"prompt": "a b c", "chosen": " ".join("defgh"[: 2 + index % 3]), "rejected": "x y"}
        for index in range(32)
    ]
    trainer = trl.DPOTrainer(
        model=tiny_model(),
        ref_model=tiny_model(),
        args=trl.DPOConfig(**trl_settings(tmp_path), max_length=16),
        train_dataset=datasets.Dataset.from_list(pairs),
        processing_class=tokenizer(),
        callbacks=[PrometheusCallback(exporter)],
    )

    trainer.train()

    assert_like_the_log(trainer, exporter)
    assert "rewards/margins" in exporter.status.logged


# Mixed precision with a gradient scaler


class Scaler:
    """A gradient scaler as accelerate's optimiser holds it. To ask it for its scale is a sync."""

    _scale = torch.tensor(1024.0)

    def get_scale(self) -> float:
        raise AssertionError("get_scale() waits for the device")


class ScaledOptimizer:
    """An optimiser with a scaler, as the hooks see it."""

    def __init__(self, model: nn.Module) -> None:
        self.param_groups = [{"params": list(model.parameters()), "lr": 0.5}]
        self.scaler = Scaler()
        self.step_was_skipped = True


def test_loss_scale_and_skipped_steps(tmp_path: Path) -> None:
    """The scale is read without a sync, a skip is counted, and an unclipped norm is unscaled."""
    exporter = RecordingExporter()
    callback = PrometheusCallback(exporter)
    model = nn.Linear(3, 1, bias=False)
    model.weight.grad = torch.full((1, 3), 1024.0)
    trainer = make_trainer(tmp_path, callback)
    hooks: dict[str, Any] = {"model": model, "optimizer": ScaledOptimizer(model)}
    told = (trainer.args, trainer.state, trainer.control)

    callback.on_train_begin(*told, **hooks)
    callback.on_step_begin(*told, **hooks)
    callback.on_pre_optimizer_step(*told, **hooks)
    trainer.state.global_step = 1
    callback.on_step_end(*told, **hooks)

    (signals,) = exporter.steps
    assert (signals.loss_scale, signals.skipped) == (1024.0, True)
    assert signals.grad_norm == pytest.approx(math.sqrt(3))
    assert signals.learning_rates == {"0": 0.5}
    assert exporter.value("training_skipped_steps_total") == 1
