# SPDX-License-Identifier: Apache-2.0
"""Slots that are whole or seen to be torn, and values that come back as they were."""

from __future__ import annotations

from math import inf, isnan, nan

import pytest

from training_exporter.lifecycle.blackbox_format import (
    HEAD_SIZE,
    STEP_SIZE,
    is_empty,
    read_step,
    read_sums,
    read_text,
    step_slot,
    sums_slot,
    text_slot,
)
from training_exporter.signals import StepSignals

FULL = StepSignals(
    7, 1.7e9, loss=2.5, grad_norm=0.5, clip_threshold=1.0, learning_rates={"0": 1e-3},
    loss_scale=65536.0, skipped=True, epoch=0.25, max_steps=100, tokens=4096.0, samples=8.0,
    step_seconds=0.25, data_wait_seconds=0.01, memory_allocated_bytes=1e9, positions=5000.0,
    flops=1e15,
)  # fmt: skip


@pytest.mark.parametrize("signals", [FULL, StepSignals(1, 0.0), StepSignals(2**60, 1.5)])
def test_a_step_comes_back_as_it_was(signals: StepSignals) -> None:
    """Also one of which next to nothing is known."""
    assert read_step(step_slot(3, signals)) == (3, signals)


@pytest.mark.parametrize("value", [inf, -inf, 0.0, -0.0, 5e-324])
def test_values_at_the_edges_come_back(value: float) -> None:
    """Infinite ones are what the last steps of a dying run are made of."""
    back = read_step(step_slot(1, StepSignals(1, 0.0, loss=value)))

    assert back is not None
    assert repr(back.signals.loss) == repr(value)


@pytest.mark.parametrize("not_a_number", [nan, -nan, inf - inf, nan * 0])
def test_nan_is_a_value_and_none_is_none(not_a_number: float) -> None:
    """What stands for None is another NaN than any that arithmetic yields."""
    back = read_step(step_slot(1, StepSignals(1, 0.0, loss=not_a_number)))

    assert back is not None
    assert isnan(back.signals.loss)  # type: ignore[arg-type]
    assert back.signals.grad_norm is None


def test_of_several_learning_rates_the_first_is_kept() -> None:
    """A record has one size."""
    back = read_step(step_slot(1, StepSignals(1, 0.0, learning_rates={"body": 1e-3, "head": 1e-2})))

    assert back is not None
    assert back.signals.learning_rates == {"0": 1e-3}


def test_a_step_over_which_a_process_was_killed_is_seen_to_be_torn() -> None:
    """Its beginning is of the new step, its end of the one that was there before."""
    before, after = step_slot(1, FULL), step_slot(257, StepSignals(263, 1.8e9, loss=3.0))
    mixed = {after[:cut] + before[cut:] for cut in range(STEP_SIZE + 1)} - {before, after}

    assert len(mixed) > STEP_SIZE // 3
    assert all(read_step(slot) is None for slot in mixed)


def test_an_unwritten_slot_is_empty_and_not_torn() -> None:
    """A new file is all zeros."""
    zeros = bytes(HEAD_SIZE)

    assert is_empty(zeros)
    assert read_text(zeros) is None
    assert read_sums(zeros, 3) is None
    assert read_step(zeros) is None


def test_text_and_sums_come_back_with_their_order() -> None:
    """By which the newer of two slots is told."""
    content = {"loss": nan, "kind": "päuse", "rows": [1, 2.5, None]}
    slot = text_slot(9, content, HEAD_SIZE)
    order, back = read_text(slot + bytes(HEAD_SIZE - len(slot))) or (0, {})

    assert order == 9
    assert repr(back) == repr(content)
    assert read_sums(sums_slot(4, (1.0, nan)) + bytes(100), 2).__repr__() == "(4, (1.0, nan))"


def test_text_that_does_not_fit_in_is_refused() -> None:
    """Half of it would be nothing."""
    with pytest.raises(ValueError, match="do not fit"):
        text_slot(1, {"long": "x" * HEAD_SIZE}, HEAD_SIZE)
