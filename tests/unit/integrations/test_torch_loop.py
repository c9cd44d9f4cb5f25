# SPDX-License-Identifier: Apache-2.0
"""Loops written by hand, from TorchLoop's side; the facade has its own tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import inf, isnan, nan
from typing import Any

import pytest
import torch
from torch import nn

from tests.sync_audit import SyncAudit
from tests.unit.device.late_device import LateDevice
from training_exporter import catalog
from training_exporter.boundary import StepBoundary
from training_exporter.device.recorder import StepRecorder
from training_exporter.integrations.torch_loop import TorchLoop
from training_exporter.signals import StepSignals
from training_exporter.status import ExporterHealth
from training_exporter.timing.step_timer import StepTimer


class Exporter:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.health = ExporterHealth()
        self.boundary = StepBoundary(self.health)
        self.seen: list[StepSignals] = []
        self.dropped = 0
        self.ended_step = 0

    def observe(self, signals: StepSignals) -> None:
        self.seen.append(signals)

    def count_dropped(self, steps: int, series: int) -> None:
        self.dropped += steps

    @property
    def last(self) -> StepSignals:
        return self.seen[-1]


class Clock:
    """Time passes when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def exporter() -> Exporter:
    return Exporter()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def timer(clock: Clock) -> StepTimer:
    return StepTimer(clock)


@pytest.fixture
def loop(exporter: Exporter, timer: StepTimer) -> TorchLoop:
    return TorchLoop(exporter, timer=timer, wall_clock=lambda: 77.0)


@pytest.fixture
def weight() -> nn.Parameter:
    """A parameter whose gradient has norm 5."""
    made = nn.Parameter(torch.zeros(2))
    made.grad = torch.tensor([3.0, 4.0])
    return made


def test_all_that_a_step_says_arrives(loop: TorchLoop, exporter: Exporter) -> None:
    """Tensors and numbers alike, each in its field."""
    loop.step(
        loss=torch.tensor(2.0),
        grad_norm=torch.tensor([0.5]),
        learning_rate=1e-3,
        tokens=torch.tensor(100),
        samples=8,
        epoch=0.25,
        step=40,
        max_steps=90,
        loss_scale=2.0**16,
        skipped=True,
        data_wait_seconds=0.5,
        clip_threshold=1.0,
        positions=128,
        flops=6e9,
    )

    assert exporter.seen == [
        StepSignals(
            step=40,
            timestamp=77.0,
            loss=2.0,
            grad_norm=0.5,
            clip_threshold=1.0,
            learning_rates={"0": 1e-3},
            loss_scale=65536.0,
            skipped=True,
            epoch=0.25,
            max_steps=90,
            tokens=100.0,
            samples=8.0,
            data_wait_seconds=0.5,
            positions=128,
            flops=6e9,
        )
    ]


def test_a_bare_step_is_a_step(loop: TorchLoop, exporter: Exporter) -> None:
    """A loop that says nothing is at least alive."""
    loop.step()

    assert exporter.seen == [StepSignals(step=1, timestamp=77.0)]


def test_steps_count_themselves(loop: TorchLoop, exporter: Exporter) -> None:
    """From 1, and on from a number that was given."""
    for step in (None, None, 10, None):
        loop.step(step=step)

    assert [signals.step for signals in exporter.seen] == [1, 2, 10, 11]
    assert exporter.ended_step == 11


def test_micro_batches_are_summed_into_their_step(loop: TorchLoop, exporter: Exporter) -> None:
    """Gradient accumulation, with the last micro-batch given to `step` itself or not."""
    loop.add_micro_batch(loss=torch.tensor(0.5), tokens=10, samples=1)
    loop.add_micro_batch(loss=0.25, tokens=torch.tensor(20), samples=1)
    loop.step(loss=torch.tensor(0.25), tokens=30, samples=1)
    loop.add_micro_batch(loss=3.0)
    loop.step()

    assert [(s.loss, s.tokens, s.samples) for s in exporter.seen] == [
        (1.0, 60.0, 3.0),
        (3.0, None, None),
    ]


def test_a_step_given_up_leaves_nothing(
    loop: TorchLoop, exporter: Exporter, weight: nn.Parameter
) -> None:
    """After `discard`, as after an out-of-memory error that was caught, the next step is clean."""
    loop.add_micro_batch(loss=5.0)
    loop.clip_grad_norm_([weight], 1.0)
    loop.discard()
    loop.step(loss=1.0)

    assert exporter.last == StepSignals(
        step=1, timestamp=77.0, loss=1.0, step_seconds=None, data_wait_seconds=None
    )


class TestClipping:
    """`clip_grad_norm_` is torch's own and is looked at on the side."""

    def test_it_does_what_torch_does(
        self, loop: TorchLoop, exporter: Exporter, weight: nn.Parameter
    ) -> None:
        """The same result and gradients; the norm before the clip is recorded."""
        twin = nn.Parameter(torch.zeros(2))
        twin.grad = torch.tensor([3.0, 4.0])
        expected = nn.utils.clip_grad_norm_([twin], 2.0)
        total = loop.clip_grad_norm_([weight], 2.0)
        loop.step()

        assert torch.equal(total, expected)
        assert weight.grad is not None
        assert torch.equal(weight.grad, twin.grad)
        assert (exporter.last.grad_norm, exporter.last.clip_threshold) == (5.0, 2.0)

    def test_a_generator_is_clipped_too(self, loop: TorchLoop, weight: nn.Parameter) -> None:
        """To look into it would use it up, and silently nothing would be clipped."""
        loop.clip_grad_norm_((p for p in [weight]), 1.0)

        assert weight.grad is not None
        assert weight.grad.norm().item() == pytest.approx(1.0, rel=1e-5)

    def test_norm_and_threshold_are_those_of_one_step(
        self, loop: TorchLoop, exporter: Exporter, weight: nn.Parameter
    ) -> None:
        """A step that did not clip has neither."""
        loop.clip_grad_norm_([weight], 2.0)
        loop.step()
        loop.step()

        assert (exporter.last.grad_norm, exporter.last.clip_threshold) == (None, None)

    def test_an_infinite_threshold_is_none(
        self, loop: TorchLoop, exporter: Exporter, weight: nn.Parameter
    ) -> None:
        """The idiom for a norm without clipping."""
        loop.clip_grad_norm_([weight], inf)
        loop.step()

        assert (exporter.last.grad_norm, exporter.last.clip_threshold) == (5.0, None)

    @pytest.mark.parametrize("norm_type", [inf, 1.0, "inf"])
    def test_other_norms_are_not_recorded(
        self, loop: TorchLoop, exporter: Exporter, weight: nn.Parameter, norm_type: Any
    ) -> None:
        """The metric says L2, so no other norm may stand in for it."""
        loop.clip_grad_norm_([weight], 1.0, norm_type=norm_type)
        loop.step()

        assert (exporter.last.grad_norm, exporter.last.clip_threshold) == (None, None)
        assert not any(exporter.health.errors.values())

    def test_what_torch_raises_comes_through(self, loop: TorchLoop, weight: nn.Parameter) -> None:
        """`error_if_nonfinite` is the user's choice, not an error of ours."""
        weight.grad = torch.tensor([nan, 1.0])
        with pytest.raises(RuntimeError, match="non-finite"):
            loop.clip_grad_norm_([weight], 1.0, error_if_nonfinite=True)

    def test_a_failure_to_record_stays_here(
        self,
        exporter: Exporter,
        weight: nn.Parameter,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """The training gets torch's result, clipped once, and the error is counted and logged."""
        recorder = StepRecorder()
        monkeypatch.setattr(recorder, "set_grad_norm", lambda _: 1 / 0)
        loop = TorchLoop(exporter, recorder=recorder)
        total = loop.clip_grad_norm_([weight], 1.0)

        assert total.item() == 5.0
        assert weight.grad is not None
        assert weight.grad.norm().item() == pytest.approx(1.0, rel=1e-5)
        assert exporter.health.errors[catalog.STEP_ERROR] == 1
        assert "ZeroDivisionError" in caplog.text

    def test_no_parameters_are_no_error(self, loop: TorchLoop, exporter: Exporter) -> None:
        """torch calls that a norm of zero."""
        loop.clip_grad_norm_([], 1.0)
        loop.step()

        assert exporter.last.grad_norm == 0.0

    def test_what_the_user_says_goes_first(
        self, loop: TorchLoop, exporter: Exporter, weight: nn.Parameter
    ) -> None:
        """A norm or threshold given to `step` replaces what was seen."""
        loop.clip_grad_norm_([weight], 1.0)
        loop.step(grad_norm=7.0, clip_threshold=3.0)

        assert (exporter.last.grad_norm, exporter.last.clip_threshold) == (7.0, 3.0)


class TestObservedGradients:
    """`observe_gradients` for loops that clip in their own way, or not at all."""

    @pytest.mark.parametrize(
        "given",
        [
            lambda p: [p],
            lambda p: iter([p]),
            lambda p: p,
            lambda p: nn.ParameterList([p]),
        ],
    )
    def test_a_model_or_its_parameters(
        self,
        loop: TorchLoop,
        exporter: Exporter,
        weight: nn.Parameter,
        given: Callable[[nn.Parameter], Any],
    ) -> None:
        """A module, a list, an iterator or a single parameter."""
        loop.observe_gradients(given(weight))
        loop.step()

        assert exporter.last.grad_norm == 5.0

    def test_the_first_norm_of_a_step_counts(
        self, loop: TorchLoop, exporter: Exporter, weight: nn.Parameter
    ) -> None:
        """After the clip the gradients are no longer what they were."""
        loop.clip_grad_norm_([weight], 1.0)
        loop.observe_gradients([weight])
        loop.step()

        assert exporter.last.grad_norm == 5.0

    def test_before_the_clip_it_does_no_harm(
        self, loop: TorchLoop, exporter: Exporter, weight: nn.Parameter
    ) -> None:
        """The norm is seen once, and the threshold still comes from the clip."""
        loop.observe_gradients([weight])
        loop.clip_grad_norm_([weight], 1.0)
        loop.step()

        assert (exporter.last.grad_norm, exporter.last.clip_threshold) == (5.0, 1.0)

    def test_the_precise_one_is_kept(
        self, loop: TorchLoop, exporter: Exporter, weight: nn.Parameter
    ) -> None:
        """torch's total norm is in the gradients' own precision, which cannot hold this one."""
        half = nn.Parameter(torch.zeros(1000, dtype=torch.float16))
        half.grad = torch.full((1000,), 3000.0, dtype=torch.float16)
        loop.observe_gradients([half])
        loop.clip_grad_norm_([half], 1.0)
        loop.step()

        assert exporter.last.grad_norm == pytest.approx(3000 * 1000**0.5)

    def test_a_model_without_parameters_has_no_norm(
        self, loop: TorchLoop, exporter: Exporter
    ) -> None:
        """None, and nothing raises."""
        loop.observe_gradients(nn.Identity())
        loop.step()

        assert exporter.last.grad_norm is None


class TestLearningRates:
    """Rates from whatever a loop has at hand."""

    @pytest.fixture
    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            [
                {"params": [nn.Parameter(torch.zeros(1))], "lr": 0.5, "name": "decay"},
                {"params": [nn.Parameter(torch.zeros(1))], "lr": torch.tensor(0.25)},
            ],
            lr=0.1,
        )

    def test_of_an_optimizer(
        self, loop: TorchLoop, exporter: Exporter, optimizer: torch.optim.Optimizer
    ) -> None:
        """By the groups' names, or their places; a capturable optimiser's rate is a tensor."""
        loop.step(learning_rate=optimizer)

        assert exporter.last.learning_rates == {"decay": 0.5, "1": 0.25}

    def test_of_a_scheduler(
        self, loop: TorchLoop, exporter: Exporter, optimizer: torch.optim.Optimizer
    ) -> None:
        """By the names of its optimiser's groups."""
        loop.step(learning_rate=torch.optim.lr_scheduler.ConstantLR(optimizer, factor=0.5))

        assert exporter.last.learning_rates == {"decay": 0.25, "1": 0.125}

    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            (0.5, {"0": 0.5}),
            (torch.tensor(0.5), {"0": 0.5}),
            ({"a": 0.5, 1: torch.tensor(0.25)}, {"a": 0.5, "1": 0.25}),
            ([0.5, 0.25], {"0": 0.5, "1": 0.25}),
            (None, {}),
        ],
    )
    def test_of_plain_values(
        self, loop: TorchLoop, exporter: Exporter, given: Any, expected: dict[str, float]
    ) -> None:
        """One rate, rates by group, or none."""
        loop.step(learning_rate=given)

        assert exporter.last.learning_rates == expected


class TestTime:
    """Step time is work; waits and pauses are not."""

    def test_the_first_step_has_none(self, loop: TorchLoop, exporter: Exporter) -> None:
        """Nobody knows when it began."""
        loop.step()

        assert (exporter.last.step_seconds, exporter.last.data_wait_seconds) == (None, None)

    def test_waits_and_pauses_are_taken_out(
        self, loop: TorchLoop, exporter: Exporter, clock: Clock, timer: StepTimer
    ) -> None:
        """What the timer was told of belongs to the step that follows."""
        loop.step()
        with timer.pause(lambda _: None):
            clock.now += 100.0
        clock.now += 2.0
        timer.waited(2.0)
        clock.now += 3.0
        loop.step()

        assert (exporter.last.step_seconds, exporter.last.data_wait_seconds) == (3.0, 2.0)

    def test_a_wait_the_loop_measured_goes_first(
        self, loop: TorchLoop, exporter: Exporter, clock: Clock, timer: StepTimer
    ) -> None:
        """It knows better than the timer."""
        loop.step()
        clock.now += 10.0
        timer.waited(2.0)
        loop.step(data_wait_seconds=4.0)

        assert (exporter.last.step_seconds, exporter.last.data_wait_seconds) == (6.0, 4.0)


class TestBadValues:
    """What is wrong raises, for the caller's boundary, and costs as little as possible."""

    @pytest.mark.parametrize(
        "values",
        [
            {"loss": "0.5"},
            {"grad_norm": [1.0]},
            {"learning_rate": {"0": "x"}},
            {"epoch": torch.tensor(1.0)},
            {"step": "1"},
            {"step": 1.5},
            {"max_steps": "many"},
            {"data_wait_seconds": "long"},
            {"clip_threshold": torch.tensor(1.0)},
            {"skipped": "no"},
            {"tokens": object()},
        ],
    )
    def test_the_step_counts_all_the_same(
        self, loop: TorchLoop, exporter: Exporter, clock: Clock, values: dict[str, Any]
    ) -> None:
        """A loop with one bad value at each step is still seen to be alive, and its time kept."""
        for _ in range(2):
            clock.now += 1.0
            with pytest.raises(TypeError):
                loop.step(**values)
        clock.now += 1.0
        loop.step(loss=1.0)

        assert [signals.step for signals in exporter.seen] == [1, 2, 3]
        assert [signals.step_seconds for signals in exporter.seen] == [None, 1.0, 1.0]
        assert exporter.last.loss == 1.0
        assert all(
            isinstance(value, str) is False
            for signals in exporter.seen
            for value in (signals.loss, signals.tokens, signals.grad_norm, signals.samples)
        )

    def test_a_loss_that_was_not_reduced(self, loop: TorchLoop, exporter: Exporter) -> None:
        """It raises a ValueError and no loss is made up."""
        with pytest.raises(ValueError, match="shape"):
            loop.step(loss=torch.zeros(3))

        assert exporter.last.loss is None

    def test_non_finite_values_are_no_bad_values(self, loop: TorchLoop, exporter: Exporter) -> None:
        """They are the truth."""
        loop.step(loss=torch.tensor(nan, dtype=torch.float16), grad_norm=inf)

        assert isnan(exporter.last.loss or 0.0)
        assert exporter.last.grad_norm == inf


class TestLateDevice:
    """On a GPU values arrive later."""

    @pytest.fixture
    def device(self) -> LateDevice:
        return LateDevice()

    def test_steps_are_handed_on_when_they_arrive(
        self, exporter: Exporter, device: LateDevice
    ) -> None:
        """In order, and without waiting."""
        loop = TorchLoop(exporter, recorder=device.recorder())
        for step in range(1, 4):
            loop.step(loss=torch.tensor(float(step)))
        early = list(exporter.seen)
        device.advance(2)
        loop.step(loss=torch.tensor(4.0))

        assert early == []
        assert [signals.loss for signals in exporter.seen] == [1.0, 2.0]
        assert device.waits == 0

    def test_lost_steps_are_counted(self, exporter: Exporter, device: LateDevice) -> None:
        """Each once."""
        loop = TorchLoop(exporter, recorder=device.recorder(slots=2))
        for _ in range(5):
            loop.step(loss=torch.tensor(1.0))

        assert exporter.dropped == 3

    @pytest.mark.parametrize(("wait", "seen"), [(True, 2), (False, 1)])
    def test_the_end(self, exporter: Exporter, device: LateDevice, wait: bool, seen: int) -> None:
        """Waits for what is outstanding, unless it ends with an error."""
        loop = TorchLoop(exporter, recorder=device.recorder())
        loop.step(loss=torch.tensor(1.0))
        loop.step(loss=torch.tensor(1.0))
        device.advance()
        loop.finish(None if wait else RuntimeError())

        assert len(exporter.seen) == seen
        assert bool(device.waits) is wait

    def test_a_gradient_scaler_is_not_asked(self, exporter: Exporter, device: LateDevice) -> None:
        """Its `get_scale` waits for the device; the tensor it keeps does not."""
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        scaler.scale(torch.tensor(1.0))
        loop = TorchLoop(exporter, recorder=device.recorder())
        with SyncAudit() as audit:
            loop.step(loss_scale=scaler)
        loop.finish()

        assert audit.syncs == []
        assert exporter.last.loss_scale == 1024.0


def batches(steps: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(5)
    for _ in range(steps):
        yield torch.randn(4, 8, generator=generator), torch.randn(4, 2, generator=generator)


def train(loop: TorchLoop | None, steps: int = 8) -> dict[str, torch.Tensor]:
    """Train a small model with and without a loop around it; no other difference."""
    torch.manual_seed(11)
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.1), nn.Linear(8, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for inputs, targets in batches(steps):
        loss = nn.functional.mse_loss(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        if loop is None:
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        else:
            loop.observe_gradients(model)
            loop.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        if loop is not None:
            loop.step(loss=loss, learning_rate=optimizer, tokens=inputs.numel(), samples=4)
    return model.state_dict()


def test_weights_are_the_same_with_and_without_us(loop: TorchLoop, exporter: Exporter) -> None:
    """Bit by bit, dropout included: not a random number is drawn, not a gradient touched."""
    watched = train(loop)
    alone = train(None)

    assert all(torch.equal(watched[name], alone[name]) for name in alone)
    assert len(exporter.seen) == 8
    assert all(s.loss is not None and s.grad_norm is not None for s in exporter.seen)


@pytest.mark.parametrize("late", [False, True])
def test_a_loop_gets_no_sync_from_us(exporter: Exporter, late: bool) -> None:
    """As many as the loop has alone, on the CPU's way and on a device's."""
    device = LateDevice()
    recorder = device.recorder() if late else StepRecorder()
    with SyncAudit() as alone:
        train(None)
    with SyncAudit() as watched:
        train(TorchLoop(exporter, recorder=recorder))

    assert len(watched.syncs) == len(alone.syncs)
    assert watched.in_file("training_exporter") == []
    assert device.waits == 0
