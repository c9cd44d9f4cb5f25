# SPDX-License-Identifier: Apache-2.0
"""StepRecorder on the CPU, whose tensors are read at once."""

from __future__ import annotations

import subprocess
import sys
from decimal import Decimal
from fractions import Fraction
from math import inf, isinf, isnan, nan

import numpy
import pytest
import torch

from tests.sync_audit import SyncAudit
from training_exporter.device.recorder import MAX_GROUPS, StepRecorder
from training_exporter.signals import StepSignals


def only(signals: list[StepSignals]) -> StepSignals:
    assert len(signals) == 1
    return signals[0]


def finished(recorder: StepRecorder) -> StepSignals:
    recorder.finish(step=1, timestamp=0.0)
    return only(recorder.completed())


def test_a_step_carries_all_that_was_recorded() -> None:
    """Every setter has its field, and host fields pass through."""
    recorder = StepRecorder()
    recorder.add_loss(torch.tensor(2.5))
    recorder.add_tokens(torch.tensor(7))
    recorder.add_samples(4)
    recorder.set_grad_norm(torch.tensor(0.5))
    recorder.set_loss_scale(1024.0)
    recorder.set_learning_rate("decay", 1e-3)
    recorder.set_learning_rate("no_decay", torch.tensor(0.25))
    recorder.finish(step=3, timestamp=12.5, epoch=0.5, max_steps=10, skipped=False)

    assert only(recorder.completed()) == StepSignals(
        step=3,
        timestamp=12.5,
        loss=2.5,
        grad_norm=0.5,
        learning_rates={"decay": 1e-3, "no_decay": 0.25},
        loss_scale=1024.0,
        skipped=False,
        epoch=0.5,
        max_steps=10,
        tokens=7.0,
        samples=4.0,
    )


def test_what_was_not_recorded_is_none() -> None:
    """Absent is absent, not zero, also after a step that had it."""
    recorder = StepRecorder()
    recorder.add_loss(1.0)
    finished(recorder)

    assert finished(recorder) == StepSignals(step=1, timestamp=0.0)


def test_none_is_ignored() -> None:
    """A value that is not known may be handed on as it is."""
    recorder = StepRecorder()
    recorder.add_loss(1.0)
    recorder.add_loss(None)
    recorder.set_grad_norm(2.0)
    recorder.set_grad_norm(None)
    recorder.add_tokens(None)
    recorder.set_learning_rate("0", None)

    signals = finished(recorder)

    assert (signals.loss, signals.grad_norm, signals.tokens) == (1.0, 2.0, None)
    assert signals.learning_rates == {}


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64]
)
def test_every_dtype_arrives_exactly(dtype: torch.dtype) -> None:
    """The value is widened, never rounded."""
    recorder = StepRecorder()
    value = torch.tensor(3.1415926535, dtype=torch.float64).to(dtype)
    recorder.add_loss(value)

    assert finished(recorder).loss == value.item()


@pytest.mark.parametrize("value", [nan, inf, -inf])
@pytest.mark.parametrize("as_tensor", [True, False])
def test_non_finite_values_arrive_untouched(value: float, as_tensor: bool) -> None:
    """A NaN is a NaN, and a sum with one is one."""
    recorder = StepRecorder()
    recorder.add_loss(1.0)
    recorder.add_loss(torch.tensor(value, dtype=torch.bfloat16) if as_tensor else value)
    loss = finished(recorder).loss

    assert loss is not None
    assert isnan(loss) if isnan(value) else loss == value and isinf(loss)


def test_a_sum_of_tensors_and_numbers() -> None:
    """The micro-batches of a step may come as either."""
    recorder = StepRecorder()
    for value in (0.5, torch.tensor(0.25), 1, torch.tensor([2.0]), torch.tensor([[4.0]])):
        recorder.add_loss(value)

    assert finished(recorder).loss == 7.75


@pytest.mark.parametrize(
    "number", [numpy.float32(2.0), numpy.int64(2), Fraction(2), True + 1, torch.nn.Parameter(
        torch.tensor(2.0))],
)  # fmt: skip
def test_all_kinds_of_numbers_count(number: object) -> None:
    """Whatever is a real number, or a tensor, is one here."""
    recorder = StepRecorder()
    recorder.add_loss(number)

    assert finished(recorder).loss == 2.0


def test_tokens_are_exact_beyond_single_precision() -> None:
    """2**24 + 1 is where float32 stops counting."""
    recorder = StepRecorder()
    recorder.add_tokens(torch.tensor(2**24 + 1))
    recorder.add_tokens(2**40)

    assert finished(recorder).tokens == 2**40 + 2**24 + 1


def test_the_last_one_set_counts() -> None:
    """A gradient norm or a rate is replaced, not added to."""
    recorder = StepRecorder()
    for value in (1.0, torch.tensor(2.0), 3.0, torch.tensor(4.0)):
        recorder.set_grad_norm(value)
        recorder.set_learning_rate("0", value)
    signals = finished(recorder)

    assert signals.grad_norm == 4.0
    assert signals.learning_rates == {"0": 4.0}


def test_a_tensor_that_requires_grad_keeps_its_graph() -> None:
    """Recording a loss before `backward` changes nothing about `backward`."""
    weight = torch.tensor(3.0, requires_grad=True)
    recorder = StepRecorder()
    loss = weight * 2
    recorder.add_loss(loss)
    loss.backward()

    assert weight.grad is not None
    assert weight.grad.item() == 2.0
    assert finished(recorder).loss == 6.0


@pytest.mark.parametrize("nonsense", ["0.5", [1.0], {}, object(), 1j, Decimal(1)])
def test_nonsense_is_refused(nonsense: object) -> None:
    """What is no number raises, and the field has no value in that step."""
    recorder = StepRecorder()
    recorder.add_loss(1.0)
    with pytest.raises(TypeError, match="loss: expected a number or a tensor, got"):
        recorder.add_loss(nonsense)
    recorder.add_loss(2.0)
    recorder.add_tokens(8)

    signals = finished(recorder)

    assert signals.loss is None
    assert signals.tokens == 8


@pytest.mark.parametrize("shape", [(2,), (0,), (1, 3)])
def test_a_tensor_with_several_values_is_refused(shape: tuple[int, ...]) -> None:
    """A loss that was not reduced is not a loss, and half a sum is not a sum."""
    recorder = StepRecorder()
    recorder.add_loss(torch.tensor(1.0))
    with pytest.raises(ValueError, match="loss: expected one value, got a tensor of shape"):
        recorder.add_loss(torch.zeros(shape))

    assert finished(recorder).loss is None


def test_a_good_value_mends_a_bad_one_that_it_replaces() -> None:
    """Where the last one counts, an earlier refusal does not."""
    recorder = StepRecorder()
    with pytest.raises(TypeError):
        recorder.set_grad_norm("x")
    recorder.set_grad_norm(1.5)

    assert finished(recorder).grad_norm == 1.5


def test_a_tensor_subclass_is_read_through_its_own_operations() -> None:
    """A wrapper has no memory of its own to look into."""
    from torch.testing._internal.two_tensor import TwoTensor

    recorder = StepRecorder()
    recorder.add_loss(TwoTensor(torch.tensor(2.0), torch.tensor(3.0)))

    assert finished(recorder).loss in {2.0, 3.0}


def test_an_unknown_field_is_refused_and_leaves_nothing_behind() -> None:
    """A misspelt field raises at once; the next step starts clean."""
    recorder = StepRecorder()
    recorder.add_loss(1.0)
    with pytest.raises(TypeError, match="lozz"):
        recorder.finish(step=1, timestamp=0.0, lozz=1.0)

    assert finished(recorder).loss is None


def test_an_aborted_step_is_forgotten() -> None:
    """After `discard` the next step has nothing of the one given up."""
    recorder = StepRecorder()
    recorder.add_loss(torch.tensor(1.0))
    recorder.set_learning_rate("0", 0.1)
    recorder.discard()
    recorder.add_loss(2.0)
    signals = finished(recorder)

    assert signals.loss == 2.0
    assert signals.learning_rates == {}


def test_rates_are_bounded() -> None:
    """A group per layer does not make a thousand series; what is left out is counted."""
    recorder = StepRecorder()
    for group in range(MAX_GROUPS + 3):
        recorder.set_learning_rate(str(group), 0.1)
    recorder.set_learning_rate("0", 0.2)
    rates = finished(recorder).learning_rates

    assert len(rates) == MAX_GROUPS
    assert rates["0"] == 0.2
    assert recorder.dropped_rates == 3


def test_steps_nobody_collects_are_bounded() -> None:
    """Memory stays constant when a caller forgets to ask."""
    recorder = StepRecorder(slots=4)
    for step in range(10):
        recorder.finish(step=step, timestamp=0.0)

    assert [signals.step for signals in recorder.completed()] == [0, 1, 2, 3]
    assert recorder.dropped == 6


def test_slots_are_validated() -> None:
    """A ring without a slot could record nothing."""
    with pytest.raises(ValueError, match="slots must be at least 1, got 0"):
        StepRecorder(slots=0)


def test_reading_is_no_sync() -> None:
    """No operation that needs a value on the host is dispatched."""
    recorder = StepRecorder()
    loss = torch.tensor(2.0, requires_grad=True) * 3
    with SyncAudit() as audit:
        recorder.add_loss(loss)
        recorder.add_loss(torch.tensor([1.0], dtype=torch.bfloat16))
        recorder.add_tokens(torch.tensor(5))
        recorder.set_grad_norm(torch.nn.Parameter(torch.tensor(1.0)))
        signals = finished(recorder)

    assert audit.syncs == []
    assert signals.loss == 7.0


def test_numbers_need_no_torch() -> None:
    """A loop of plain numbers works where torch is not even installed."""
    code = """
import sys
sys.modules["torch"] = None
from training_exporter.device.recorder import StepRecorder
recorder = StepRecorder()
recorder.add_loss(1)
try:
    recorder.add_tokens("x")
except TypeError as error:
    print(error)
recorder.finish(step=1, timestamp=0.0)
print(recorder.flush()[0].loss)
"""
    output = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout

    assert output == "tokens: expected a number or a tensor, got str\n1.0\n"
