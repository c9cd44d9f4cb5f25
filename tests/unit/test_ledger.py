# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from math import inf
from random import Random

import pytest

from training_exporter.ledger import Ledger
from training_exporter.signals import StepSignals

NAN = float("nan")


def eventful_run(number: int) -> list[StepSignals]:
    """Steps with everything in them that the books tell apart."""
    random = Random(0)
    return [
        StepSignals(
            step, 0.0, loss=random.choice([None, NAN, 1.0, 2.5]), grad_norm=random.random(),
            clip_threshold=0.5, loss_scale=random.choice([None, 512.0, 1024.0]),
            skipped=random.choice([None, False, True]), tokens=random.choice([None, 100]),
            samples=2, step_seconds=random.choice([None, 0.3, 0.7]), data_wait_seconds=0.01,
            positions=random.choice([None, 128]), flops=random.choice([None, 6e9]),
        )
        for step in range(1, number + 1)
    ]  # fmt: skip


def test_portions_do_not_matter() -> None:
    """The books are the same whether steps are entered one by one, or by the dozen."""
    run = eventful_run(300)
    at_once = Ledger(0.9).after(run)

    in_portions = Ledger(0.9)
    start = 0
    for size in (1, 2, 7, 90, 200):
        in_portions = in_portions.after(run[start : start + size])
        start += size

    assert in_portions.totals == pytest.approx(at_once.totals)
    assert in_portions.loss_ema.value == at_once.loss_ema.value
    assert in_portions.step_buckets == at_once.step_buckets
    assert in_portions.history.points() == at_once.history.points()


def test_later_books_leave_the_earlier_ones_alone() -> None:
    """Whoever reads a ledger may go on reading it."""
    ledger = Ledger(0.9).after(eventful_run(10))
    before = (ledger.totals, list(ledger.step_buckets), ledger.loss_ema.value)

    ledger.after(eventful_run(50))

    assert (ledger.totals, ledger.step_buckets, ledger.loss_ema.value) == before


def test_a_restart_forgets_levels_and_keeps_sums() -> None:
    """The averages start afresh, the totals go on."""
    ledger = Ledger(0.9).after(eventful_run(10))

    restarted = ledger.after_restart()

    assert restarted.loss_ema.value is None
    assert restarted.totals == ledger.totals


def with_losses(*losses: float | None, first: int = 1) -> list[StepSignals]:
    return [StepSignals(step, 100.0 + step, loss) for step, loss in enumerate(losses, first)]


def test_non_finite_steps_are_followed_over_portions() -> None:
    """How many in a row, and when the last one was; a step without a loss says nothing."""
    ledger = Ledger(0.9).after(with_losses(1.0, NAN, NAN))
    assert ledger.non_finite["loss"] == (2.0, 103.0)

    ledger = ledger.after(with_losses(None, NAN, first=4))
    assert ledger.non_finite["loss"] == (3.0, 105.0)

    ledger = ledger.after(with_losses(1.0, first=6))
    assert ledger.non_finite["loss"] == (0.0, 105.0)
    assert ledger.non_finite["grad_norm"] == (0.0, None)


def test_non_finite_steps_outlive_a_save_and_a_restart_ends_the_row() -> None:
    """The time of the last one stays: it is still the last one."""
    saved = Ledger(0.9).after(with_losses(NAN, NAN))
    ledger = Ledger(0.9)
    ledger.load_levels(saved.levels())
    assert ledger.non_finite["loss"] == (2.0, None)
    ledger.load_counts(saved.counts())
    ledger.load_levels(saved.levels())

    assert ledger.non_finite["loss"] == (2.0, 102.0)
    assert ledger.after_restart().non_finite["loss"] == (0.0, 102.0)


def test_padding_is_of_the_steps_that_tell_it_apart() -> None:
    """Not of those of which one of the two numbers is unknown; and no sum ever falls."""
    known = StepSignals(1, 0.0, tokens=90.0, positions=100.0, flops=5.0)
    untold = StepSignals(2, 0.0, tokens=1000.0)
    no_tokens = StepSignals(3, 0.0, positions=1000.0, flops=NAN)
    nonsense = StepSignals(4, 0.0, tokens=7.0, positions=5.0, flops=-1.0)

    totals = Ledger(0.9).after([known, untold, no_tokens]).totals
    assert (totals.positions, totals.padding, totals.flops) == (100.0, 10.0, 5.0)

    later = Ledger(0.9).after([known, nonsense]).totals
    assert (later.padding, later.flops) == (10.0, 5.0)


def test_the_best_loss_and_its_step() -> None:
    """The lowest finite one, of equals the first, and kept with the levels."""
    steps = [StepSignals(i, 0.0, loss=x) for i, x in enumerate((3.0, 1.0, NAN, 1.0, -inf), 1)]
    ledger = Ledger(0.9).after(steps[:3]).after(steps[3:])

    other = Ledger(0.9)
    other.load_levels(ledger.levels())

    assert ledger.best == other.best == (1.0, 2)
    assert Ledger(0.9).after([StepSignals(1, 0.0, loss=NAN)]).best is None
