# SPDX-License-Identifier: Apache-2.0
"""The smallest real training runs: a model built from a config, made-up data, quick steps.

Works on every release of transformers that the package supports.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from torch import nn
from torch.utils.data import Dataset, IterableDataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from training_exporter import StepSignals, TrainingExporter
from training_exporter.integrations.huggingface import PrometheusCallback
from training_exporter.layers.shown import LayerState, LayerView
from training_exporter.signals import Evaluation

VOCABULARY = 64
LENGTH = 12
STEPS = 4

ON_CUDA = os.environ.get("TESTS_ON_CUDA") == "1"
"""Whether the trainings run on a GPU; unset, on the CPU also where there is one."""

values_at_once = pytest.mark.skipif(
    ON_CUDA, reason="is about a device whose values the host has at once, as a CPU's"
)

RELEASE = Version(transformers.__version__)
ROUNDED = 6e-5 if RELEASE.major < 5 else 1e-6
"""How far a logged loss may be off: older Trainers round it to four digits."""
RATE_IS_THE_NEXT_ONE = Version("4.50") > RELEASE
"""Older Trainers log the learning rate of the step to come."""


def tiny_model(seed: int = 0) -> LlamaForCausalLM:
    """A causal language model with the same few weights for the same seed."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            vocab_size=VOCABULARY,
            max_position_embeddings=64,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


def padded_row(index: int) -> dict[str, torch.Tensor]:
    """Tokens of one row; how many of them are padding differs from row to row."""
    generator = torch.Generator().manual_seed(index)
    ids = torch.randint(3, VOCABULARY, (LENGTH,), generator=generator)
    mask = torch.ones(LENGTH, dtype=torch.long)
    mask[LENGTH - index % 5 :] = 0
    ids[mask == 0] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


class Rows(Dataset):  # type: ignore[type-arg]
    """Rows of padded tokens; `on_read` is called with the index of each row that is read."""

    def __init__(self, count: int = 64, on_read: Callable[[int], object] | None = None) -> None:
        self.count = count
        self.on_read = on_read

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if self.on_read is not None:
            self.on_read(index)
        return padded_row(index)


class StreamedRows(IterableDataset):  # type: ignore[type-arg]
    """Rows of padded tokens from a source that does not know how many it has."""

    def __init__(self, count: int = 64) -> None:
        self.count = count

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return (padded_row(index) for index in range(self.count))


class TupleModel(nn.Module):
    """A module that is no transformers model and returns (loss, logits)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(VOCABULARY, 8)
        self.head = nn.Linear(8, VOCABULARY)

    def forward(
        self, input_ids: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.head(self.embedding(input_ids))
        return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()), logits


class RecordingExporter(TrainingExporter):
    """Keeps every step and evaluation it saw, and serves nothing unless it is told to."""

    def __init__(self, **settings: Any) -> None:
        settings.setdefault("serve", False)
        super().__init__(**settings)
        self.steps: list[StepSignals] = []
        self.evaluations: list[Evaluation] = []

    def observe(self, signals: StepSignals) -> None:
        self.steps.append(signals)
        super().observe(signals)

    def observe_evaluation(self, results: Mapping[str, object], **told: Any) -> None:
        super().observe_evaluation(results, **told)
        self.evaluations.append(list(self.snapshot.evaluations.values())[-1])

    def value(self, series: str, /, **labels: str) -> float | None:
        """What the page shows for a series."""
        return self.registry.get_sample_value(series, {**self.status.labels, **labels})


class LayerRecorder(RecordingExporter):
    """Keeps each pass over the layers, as the page shows it."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"layer_interval": 1, **settings})
        self.views: list[LayerView] = []

    def observe_layers(self, state: LayerState | None, *, dropped: int = 0) -> None:
        super().observe_layers(state, dropped=dropped)
        view = self._board.layers.view()
        assert view is not None
        self.views.append(view)


def arguments(folder: Path, **changed: Any) -> TrainingArguments:
    """Four steps, each of them logged as it is."""
    settings: dict[str, Any] = {
        "output_dir": str(folder / "tiny-run"),
        "max_steps": STEPS,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": not ON_CUDA,
        "seed": 1,
        **changed,
    }
    return TrainingArguments(**settings)


def make_trainer(
    folder: Path,
    *callbacks: TrainerCallback,
    model: nn.Module | None = None,
    data: Any = None,
    eval_data: Any = None,
    trainer_class: type[Trainer] = Trainer,
    trainer_settings: Mapping[str, Any] | None = None,
    **changed: Any,
) -> Trainer:
    """A Trainer of a tiny model; `changed` are training arguments."""
    return trainer_class(
        model=model if model is not None else tiny_model(),
        args=arguments(folder, **changed),
        train_dataset=data if data is not None else Rows(),
        eval_dataset=eval_data,
        callbacks=list(callbacks),
        **(trainer_settings or {}),
    )


def trained(folder: Path, **settings: Any) -> tuple[Trainer, RecordingExporter]:
    """A Trainer that has trained under our eyes."""
    exporter = RecordingExporter()
    trainer = make_trainer(folder, PrometheusCallback(exporter), **settings)
    trainer.train()
    return trainer, exporter


def step_logs(trainer: Trainer) -> list[dict[str, Any]]:
    """What the Trainer itself logged on its training steps."""
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def assert_like_the_log(
    trainer: Trainer, exporter: RecordingExporter, *, steps: int = STEPS
) -> None:
    """Loss, gradient norm and learning rate of each step are those of the Trainer's own log."""
    logged = step_logs(trainer)
    assert [entry["step"] for entry in logged] == list(range(1, steps + 1))
    assert [signals.step for signals in exporter.steps] == list(range(1, steps + 1))
    close = {"rel": 1e-5, "nan_ok": True}
    assert [signals.loss for signals in exporter.steps] == pytest.approx(
        [entry["loss"] for entry in logged], abs=ROUNDED, **close
    )
    if trainer.args.max_grad_norm or any("grad_norm" in entry for entry in logged):
        assert [signals.grad_norm for signals in exporter.steps] == pytest.approx(
            [entry["grad_norm"] for entry in logged], **close
        )
    rates = [signals.learning_rates["0"] for signals in exporter.steps]
    logged_rates = [entry["learning_rate"] for entry in logged]
    if RATE_IS_THE_NEXT_ONE:
        del rates[0], logged_rates[-1]
    assert rates == pytest.approx(logged_rates, **close)
    assert exporter.health.errors == dict.fromkeys(exporter.health.errors, 0)


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of all weights."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def assert_same_weights(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> None:
    """Bit by bit, NaN included."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value.cpu().numpy().tobytes() == other[name].cpu().numpy().tobytes(), name


def tokenizer() -> Any:
    """A tokenizer of 26 words, built here."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<bos>", "<eos>", "<unk>", *"abcdefghijklmnopqrstuvwxyz"]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>",
        unk_token="<unk>",
    )  # fmt: skip


def trl_settings(folder: Path) -> dict[str, Any]:
    shared = arguments(folder, gradient_accumulation_steps=2)
    names = (
        "output_dir", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps",
        "learning_rate", "logging_steps", "logging_nan_inf_filter", "report_to", "disable_tqdm",
        "use_cpu",
    )  # fmt: skip
    settings = {name: getattr(shared, name) for name in names}
    return {**settings, "save_strategy": "no", "bf16": False, "gradient_checkpointing": False}


def supervised_trainer(folder: Path, *callbacks: TrainerCallback) -> Any:
    """TRL's SFT trainer with accumulation, on rows of text of different lengths."""
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    texts = [" ".join("abcdefghijklmnop"[index % 7 :]) for index in range(32)]
    return trl.SFTTrainer(
        model=tiny_model(),
        args=trl.SFTConfig(**trl_settings(folder)),
        train_dataset=datasets.Dataset.from_list([{"text": text} for text in texts]),
        processing_class=tokenizer(),
        callbacks=list(callbacks),
    )
