# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from training_exporter.demo import faults
from training_exporter.demo.plan import FAULTS, Fault

RATE = 0.1


class Bench:
    """A model of two layers that is trained as the Trainer does it: hooks, step, schedule."""

    def __init__(self, callback: TrainerCallback) -> None:
        torch.manual_seed(0)
        self.callback = callback
        self.embedding = torch.nn.Embedding(4, 3)
        self.model = torch.nn.Sequential(self.embedding, torch.nn.Linear(3, 1))
        self.model.get_input_embeddings = lambda: self.embedding  # type: ignore[assignment]
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=RATE)
        self.loader = SimpleNamespace(
            dataset=SimpleNamespace(read_seconds=0.0), total_batch_size=10
        )
        self.rates: list[float] = []
        self.losses: list[float] = []
        self.read_seconds: list[float] = []

    def train(self, steps: int) -> None:
        for done in range(len(self.losses), len(self.losses) + steps):
            self.begin(done)
            loss = self.model(torch.tensor([0, 1, 2])).pow(2).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.rates.append(self.optimizer.param_groups[0]["lr"])
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.optimizer.param_groups[0]["lr"] = RATE
            self.losses.append(loss.item())
            self.read_seconds.append(self.loader.dataset.read_seconds)

    def begin(self, done: int) -> None:
        args: Any = None
        state: Any = SimpleNamespace(global_step=done)
        self.callback.on_step_begin(
            args,
            state,
            args,
            model=self.model,
            optimizer=self.optimizer,
            train_dataloader=self.loader,
        )


@pytest.fixture
def bench() -> Callable[[str, int], Bench]:
    return lambda kind, step: Bench(faults.fault_callback(Fault(kind, step)))


@pytest.mark.parametrize("kind", FAULTS)
def test_every_kind_has_a_callback_that_waits_for_its_step(
    bench: Callable[[str, int], Bench], kind: str
) -> None:
    """Until then the training is what it would have been."""
    healthy, faulty = Bench(TrainerCallback()), bench(kind, 9)

    healthy.train(7)
    faulty.train(7)

    assert faulty.losses == healthy.losses
    assert faulty.rates == healthy.rates


def test_an_explosion_multiplies_the_rate_and_is_undone(
    bench: Callable[[str, int], Bench],
) -> None:
    """A thousandfold for its steps, however the schedule sets it, then from the old weights."""
    run = bench("explosion", 3)
    run.train(2)
    before = run.model[1].weight.clone()

    run.train(faults.Explosion.length)
    ruined = run.model[1].weight.clone()
    run.train(1)

    assert run.rates == pytest.approx([RATE] * 2 + [RATE * 1000] * faults.Explosion.length + [RATE])
    assert not torch.allclose(ruined, before, atol=10)
    assert torch.allclose(run.model[1].weight, before, atol=2 * RATE)


def test_going_back_leaves_the_learning_rate_alone(bench: Callable[[str, int], Bench]) -> None:
    """A checkpoint from the middle of another fault must not bring its rate back."""
    run = bench("stall", 99)
    run.train(2)
    training = {"model": run.model, "optimizer": run.optimizer}
    run.optimizer.param_groups[0]["lr"] = 1000 * RATE
    checkpoint = faults.Checkpoint(training)
    run.optimizer.param_groups[0]["lr"] = RATE

    checkpoint.restore(training)

    assert run.optimizer.param_groups[0]["lr"] == RATE


def test_a_plateau_learns_nothing(bench: Callable[[str, int], Bench]) -> None:
    """At rate 0 the loss of the same batch stays what it was."""
    run = bench("plateau", 3)

    run.train(3 + faults.Plateau.length)

    flat = run.losses[2 : 2 + faults.Plateau.length]
    assert set(flat) == {flat[0]}
    assert run.rates[-2:] == [0.0, RATE]


def test_nan_spreads_until_the_weights_are_restored(bench: Callable[[str, int], Bench]) -> None:
    """One bad batch, and each later loss is NaN although the batches are good again."""
    run = bench("nan", 3)

    run.train(3 + faults.NaN.lasts + 2)

    bad = [math.isnan(loss) for loss in run.losses]
    assert bad == [False] * 2 + [True] * faults.NaN.lasts + [False] * 3


def test_a_stall_hangs_one_step(
    bench: Callable[[str, int], Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, inside the step."""
    slept: list[float] = []
    monkeypatch.setattr(faults, "sleep", slept.append)
    run = bench("stall", 3)

    run.train(5)

    assert slept == [faults.Stall.seconds]


@pytest.mark.parametrize("kind", ["nan", "stall"])
def test_an_evaluation_is_spared(
    bench: Callable[[str, int], Bench], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """An evaluation after the step finds the hook still there, and is none of its business."""
    slept: list[float] = []
    monkeypatch.setattr(faults, "sleep", slept.append)
    run = bench(kind, 1)
    run.begin(0)

    run.model.eval()

    assert torch.isfinite(run.embedding(torch.tensor([0, 1]))).all()
    assert not slept


def test_a_crash_is_what_pytorch_raises(bench: Callable[[str, int], Bench]) -> None:
    """No exception of ours: a token out of range."""
    run = bench("crash", 3)

    with pytest.raises(IndexError, match="out of range"):
        run.train(5)

    assert len(run.losses) == 2


def test_slow_data_slows_each_row(bench: Callable[[str, int], Bench]) -> None:
    """A batch of 10 rows takes half a second, and after the fault nothing."""
    run = bench("slow-data", 3)

    run.train(faults.SlowData.length + 4)

    slow = [seconds for seconds in run.read_seconds if seconds]
    assert slow == [faults.SlowData.batch_seconds / 10] * faults.SlowData.length
    assert run.read_seconds[1] == slow[0]
    assert run.read_seconds[-1] == 0.0
