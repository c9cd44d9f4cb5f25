# SPDX-License-Identifier: Apache-2.0
"""How much work the steps of real Trainers are, and where their time goes.

Sleeps are lower bounds for the part they are in, and all else of a step an upper bound for it.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaForCausalLM, Trainer, TrainerCallback

from tests.integration.tiny import (
    LENGTH,
    STEPS,
    VOCABULARY,
    RecordingExporter,
    TupleModel,
    make_trainer,
    padded_row,
    tiny_model,
    trained,
    values_at_once,
)
from tests.unit.device.test_phases import LateTimedDevice
from training_exporter.integrations import effort, step_phases
from training_exporter.integrations.huggingface import PrometheusCallback

NAP = 0.15


class SlowStep(Trainer):
    """Sleeps in the forward pass of each micro-batch."""

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        time.sleep(NAP / 2)
        return super().training_step(*args, **kwargs)


class SlowSGD(torch.optim.SGD):
    def step(self, *args: Any, **kwargs: Any) -> Any:
        time.sleep(NAP)
        return super().step(*args, **kwargs)


def with_slow_optimizer() -> dict[str, Any]:
    model = tiny_model()
    optimizer = SlowSGD(model.parameters(), lr=1e-3)
    return {"model": model, "trainer_settings": {"optimizers": (optimizer, None)}}


def compute(exporter: RecordingExporter, phase: str) -> float:
    return exporter.value("training_compute_seconds_total", phase=phase) or 0.0


# Where the time goes


@pytest.mark.parametrize("clipping", [1.0, 0.0])
def test_a_step_is_divided(clipping: float, tmp_path: Path) -> None:
    """A slow pass is the passes', a slow optimiser the optimiser's; with micro-batches, clipped or
    not; and the two are nearly the whole step."""
    _, exporter = trained(
        tmp_path, trainer_class=SlowStep, gradient_accumulation_steps=2, max_grad_norm=clipping,
        **with_slow_optimizer(),
    )  # fmt: skip
    passes, optimizer = compute(exporter, "forward_backward"), compute(exporter, "optimizer")
    whole = exporter.snapshot.totals.step_seconds

    assert STEPS * NAP <= passes <= whole - STEPS * NAP
    assert STEPS * NAP <= optimizer <= whole - STEPS * NAP
    assert 0.9 * whole <= passes + optimizer <= whole
    assert sum(exporter.status.last_compute.values()) == pytest.approx(
        exporter.steps[-1].step_seconds, rel=0.1
    )


@pytest.mark.parametrize("clipping", [1.0, 0.0])
def test_our_own_work_is_not_the_optimizers(
    clipping: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What takes us long right before its step is not counted as his."""
    exporter = RecordingExporter()
    callback = PrometheusCallback(exporter)
    monkeypatch.setattr(callback._recorder, "set_grad_norm", lambda norm: time.sleep(NAP))

    make_trainer(tmp_path, callback, max_grad_norm=clipping).train()

    assert 0 < compute(exporter, "optimizer") < NAP
    assert exporter.snapshot.totals.step_seconds >= STEPS * NAP


def test_a_step_that_was_given_up_is_not_counted(tmp_path: Path) -> None:
    """A second `train()` after an error in the middle of a step begins afresh."""
    exporter = RecordingExporter()

    class Failing(Trainer):
        fails = True

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            if self.fails:
                time.sleep(NAP)
                raise RuntimeError("planted")
            return super().training_step(*args, **kwargs)

    trainer: Any = make_trainer(tmp_path, PrometheusCallback(exporter), trainer_class=Failing)
    with pytest.raises(RuntimeError, match="planted"):
        trainer.train()
    trainer.fails = False
    trainer.train()

    assert 0 < compute(exporter, "forward_backward") <= exporter.snapshot.totals.step_seconds
    assert exporter.steps[0].flops == exporter.steps[1].flops


def test_a_device_without_events_has_no_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is counted then, and nothing goes wrong."""

    def refuse(device: torch.device) -> None:
        raise TypeError("no events")

    monkeypatch.setattr(step_phases, "open_phases", refuse)

    _, exporter = trained(tmp_path)

    assert (compute(exporter, "forward_backward"), compute(exporter, "optimizer")) == (0, 0)
    assert not exporter.status.last_compute
    assert sum(exporter.health.errors.values()) == 0


@values_at_once
@pytest.mark.parametrize("layer_interval", [0, 3])
def test_few_marks_are_put_on_a_device(layer_interval: int, tmp_path: Path) -> None:
    """Six in a step: each costs as much as a kernel. Around a look at the layers, four more."""
    exporter = RecordingExporter(layer_interval=layer_interval)
    callback, device = PrometheusCallback(exporter), LateTimedDevice()
    phases: Any = callback._work._phases
    phases._clock, phases._device_type = device.clock(), "cpu"
    make_trainer(tmp_path, callback).train()

    looks = 2 if layer_interval else 0
    assert device.recorded == 6 * STEPS + 4 * looks


class Behind(TrainerCallback):
    """A device that works 2 s in each step, and gets to it one step late."""

    def __init__(self) -> None:
        self.device = LateTimedDevice()
        self.waits_while_training = 0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        while self.device.behind > 6:
            self.device.advance()

    def on_substep_end(self, *args: Any, **kwargs: Any) -> None:
        self.device.work(2.0)

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.waits_while_training = self.device.waits


@values_at_once
def test_a_device_that_is_behind_is_not_waited_for(tmp_path: Path) -> None:
    """Its times come late, and the last ones at the end of the training, for which one waits."""
    exporter, behind = RecordingExporter(), Behind()
    callback = PrometheusCallback(exporter)
    phases: Any = callback._work._phases
    phases._clock, phases._device_type = behind.device.clock(), "cpu"

    class Working(Trainer):
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            behind.device.work(2.0)
            return super().training_step(*args, **kwargs)

    make_trainer(
        tmp_path, callback, behind, trainer_class=Working, gradient_accumulation_steps=2
    ).train()

    assert behind.waits_while_training == 0
    assert behind.device.waits == 1
    assert compute(exporter, "forward_backward") == pytest.approx(2 * 2.0 * STEPS)
    assert sum(exporter.health.errors.values()) == 0


# How much work it is


class Counting(Trainer):
    """Lets torch count the operations of its first step, and sees its batches."""

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        inputs = args[1]
        self.masks = [*getattr(self, "masks", []), inputs.get("attention_mask")]
        with FlopCounterMode(display=False) as counter:
            loss = super().training_step(*args, **kwargs)
        self.counted = [*getattr(self, "counted", []), counter.get_total_flops()]
        return loss


def countable_model() -> LlamaForCausalLM:
    """One whose attention is made of products that torch counts."""
    config = tiny_model().config
    config._attn_implementation = "eager"
    return LlamaForCausalLM(config)


@pytest.mark.parametrize("batches", [1, 2])
def test_flops_are_those_that_torch_counts(batches: int, tmp_path: Path) -> None:
    """Of each step, all its micro-batches."""
    trainer, exporter = trained(
        tmp_path, model=countable_model(), trainer_class=Counting,
        gradient_accumulation_steps=batches,
    )  # fmt: skip
    counted: list[float] = trainer.counted
    of_steps = [sum(counted[i * batches : (i + 1) * batches]) for i in range(STEPS)]

    assert [signals.flops for signals in exporter.steps] == pytest.approx(of_steps, rel=0.01)
    assert exporter.value("training_model_flops_total") == pytest.approx(sum(counted), rel=0.01)


def test_padding_is_told_apart(tmp_path: Path) -> None:
    """By the masks of the batches."""
    trainer, exporter = trained(tmp_path, trainer_class=Counting, gradient_accumulation_steps=2)
    masks = torch.cat(trainer.masks)

    real, positions = int(masks.sum()), masks.numel()
    assert real < positions
    assert exporter.value("training_tokens_total") == real
    assert exporter.value("training_positions_total") == positions
    assert exporter.value("training_padding_ratio") == pytest.approx(1 - real / positions)


def test_without_a_mask_padding_is_unknown(tmp_path: Path) -> None:
    """Not 0 and not a sum over some of the batches; the work is known all the same."""
    rows = [{k: v for k, v in padded_row(i).items() if k != "attention_mask"} for i in range(16)]

    _, exporter = trained(tmp_path, data=rows)

    assert [signals.positions for signals in exporter.steps] == [None] * STEPS
    assert exporter.value("training_padding_ratio") is None
    assert exporter.value("training_tokens_total") == STEPS * 4 * LENGTH
    assert (exporter.value("training_model_flops_per_second") or 0) > 0


def test_a_sum_without_one_of_its_parts_is_none() -> None:
    """A batch that is no text spoils its step, and only that."""
    work = effort.Effort()
    work.measure(tiny_model())
    text = {"input_ids": torch.ones(2, 3), "attention_mask": torch.ones(2, 3)}
    for batch in (text, {"pixels": torch.ones(2, 3)}, text):
        work.add(batch)
    assert work.take() == {"positions": None, "flops": None}

    work.add(text)
    assert work.take()["positions"] == 6
    assert work.take() == {"positions": None, "flops": None}


def test_a_model_that_is_no_transformer_has_no_flops(tmp_path: Path) -> None:
    """Absent, while the split of its time is known."""
    rows = [
        {name: value for name, value in padded_row(i).items() if name != "attention_mask"}
        | {"labels": torch.randint(0, VOCABULARY, (LENGTH,))}
        for i in range(16)
    ]

    _, exporter = trained(tmp_path, model=TupleModel(), data=rows)

    assert [signals.flops for signals in exporter.steps] == [None] * STEPS
    assert exporter.value("training_model_flops_per_second") is None
    assert exporter.value("training_mfu_ratio") is None
    assert compute(exporter, "forward_backward") > 0


@values_at_once
def test_utilisation_is_that_of_the_peak(tmp_path: Path) -> None:
    """Of the peak that is configured; a CPU has none of its own."""
    exporter = RecordingExporter(peak_flops=1e9)
    make_trainer(tmp_path, PrometheusCallback(exporter)).train()
    _, without = trained(tmp_path)

    rate = exporter.value("training_model_flops_per_second")
    assert rate is not None
    assert exporter.value("training_mfu_ratio") == pytest.approx(rate / 1e9)
    assert without.value("training_model_flops_per_second") is not None
    assert without.value("training_mfu_ratio") is None
