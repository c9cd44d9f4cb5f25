# SPDX-License-Identifier: Apache-2.0
"""When a report is due, and what it then holds."""

from __future__ import annotations

from math import inf, isnan, nan

import pytest

from tests.unit.forensics.events import ABOUT, bad, report, signals
from training_exporter.catalog import (
    NON_FINITE_SOURCES,
    SOURCE_GRADIENTS,
    SOURCE_INPUTS,
    SOURCE_LOSS,
    SOURCE_LOSS_SCALE,
    SOURCE_PARAMETERS,
)
from training_exporter.forensics.report import MOST_INDICES, MOST_STEPS, Findings, Gap, StepRow
from training_exporter.forensics.watch import NonFiniteWatch, compose, row_of, versions_in_use


def due(watch: NonFiniteWatch, steps: range, **fields: float) -> list[int]:
    return [step for step in steps if watch.observe(signals(step, **fields))]


def test_healthy_steps_are_no_event() -> None:
    """Nor are steps of which loss and gradient norm are unknown."""
    watch = NonFiniteWatch()
    assert due(watch, range(1, 200)) == []
    assert watch.observe(signals(200, loss=None, grad_norm=None)) is None


@pytest.mark.parametrize("field", ["loss", "grad_norm"])
@pytest.mark.parametrize("value", [nan, inf, -inf])
def test_the_first_non_finite_step_is_an_event(field: str, value: float) -> None:
    """Whichever of the two it is, and whichever way it is not finite; also in the first step."""
    assert NonFiniteWatch().observe(signals(1, **{field: value})) is not None


def test_a_nan_that_stays_is_reported_once_in_a_while() -> None:
    """A report every quiet_steps, not one a step."""
    watch = NonFiniteWatch(quiet_steps=100)
    assert due(watch, range(5, 250), loss=nan) == [5, 105, 205]


def test_numbers_that_begin_anew_with_each_epoch_do_not_end_the_silence() -> None:
    """Steps are counted, not subtracted, so that such a loop does not report in each epoch."""
    watch = NonFiniteWatch(quiet_steps=100)
    epochs = [due(watch, range(40), loss=nan) for _ in range(5)]
    assert epochs == [[0], [], [20], [], []]


def test_an_event_comes_with_the_steps_before() -> None:
    """The last fifty, the event's own last."""
    watch = NonFiniteWatch()
    due(watch, range(1, 100))
    event = watch.observe(signals(100, loss=nan))

    assert event is not None
    assert [row.step for row in event.steps] == list(range(100 - MOST_STEPS + 1, 101))
    assert event.steps[-1].non_finite
    assert not event.steps[-2].non_finite


def test_finding_the_loss_scale_does_not_silence_a_nan() -> None:
    """fp16 overflows in its first steps; a NaN soon after must get its report all the same."""
    watch = NonFiniteWatch()
    assert due(watch, range(1, 4), grad_norm=inf, loss_scale=65536.0) == [1]
    assert due(watch, range(4, 9), loss=nan, loss_scale=8192.0) == [4]


def test_a_loss_scale_that_collapses_is_an_event_of_its_own() -> None:
    """The first overflow was harmless, this one is not."""
    watch = NonFiniteWatch()
    due(watch, range(1, 20), grad_norm=inf, loss_scale=2.0)
    assert due(watch, range(20, 30), grad_norm=inf, loss_scale=0.5) == [20]


def test_a_run_that_goes_back_has_another_history() -> None:
    """Nothing of before the restart is in the report after it."""
    watch = NonFiniteWatch()
    due(watch, range(1, 100))
    due(watch, range(50, 60))
    event = watch.observe(signals(60, loss=nan))

    assert event is not None
    assert [row.step for row in event.steps] == list(range(50, 61))


def test_it_says_whether_a_look_at_the_gradients_is_worth_it() -> None:
    """Not during the silence, and from its end on again."""
    watch = NonFiniteWatch(quiet_steps=10)
    assert watch.awaits_nan()
    watch.observe(signals(5, loss=nan))
    assert [outstanding for outstanding in range(12) if watch.awaits_nan(outstanding)] == [
        *range(9, 12)
    ]
    due(watch, range(6, 15))
    assert watch.awaits_nan()


def test_a_silence_must_be_at_least_a_step() -> None:
    """The message says so."""
    with pytest.raises(ValueError, match="quiet_steps must be at least 1, got 0"):
        NonFiniteWatch(quiet_steps=0)


def test_a_row_has_the_largest_rate() -> None:
    """Of several groups; a NaN rate is the one to see, wherever it stands."""
    rates = {"0": 1e-3, "1": 2e-3}
    assert row_of(signals(7, learning_rates=rates)) == StepRow(7, 2.0, 1.0, 2e-3)
    nan_rate = row_of(signals(7, learning_rates={**rates, "2": nan})).learning_rate
    assert nan_rate is not None
    assert isnan(nan_rate)
    assert row_of(signals(7, learning_rates={})).learning_rate is None


def test_a_report_says_what_it_does_not_know() -> None:
    """The layer and the rows are gaps where nobody named them, and known ones are none."""
    gaps = {gap.what for gap in report().gaps}
    assert gaps == {"first layer", "batch indices"}

    event = NonFiniteWatch().observe(signals(1, loss=nan))
    assert event is not None
    why = Gap("first layer", "it is off")
    assert compose(event, Findings(batch_indices=(1,), gaps=(why,)), ABOUT).gaps == (why,)
    assert compose(event, Findings(batch_indices=(1,)), ABOUT, first_layer="L3").gaps == ()


def test_the_rows_of_a_huge_batch_are_cut() -> None:
    """A report is bounded whatever comes in."""
    indices = report(findings=Findings(batch_indices=tuple(range(10**5)))).batch_indices
    assert indices == tuple(range(MOST_INDICES))


def test_versions_are_those_of_what_is_loaded() -> None:
    """Python's and our own are there always."""
    assert {"python", "training-exporter"} <= versions_in_use().keys()


def test_the_source_is_the_earliest_on_the_way_of_the_data() -> None:
    """Bad inputs before broken weights before the loss before the gradients."""
    both = Findings(inputs=bad(), parameters=bad(before_update=True))
    assert report(findings=both).source == SOURCE_INPUTS
    assert report(findings=Findings(parameters=bad(before_update=True))).source == SOURCE_PARAMETERS
    assert report().source == SOURCE_LOSS
    assert report(loss=2.0).source == SOURCE_GRADIENTS
    assert report(loss=2.0, loss_scale=1024.0).source == SOURCE_LOSS_SCALE
    assert report(loss_scale=1024.0).source == SOURCE_LOSS
    assert set(NON_FINITE_SOURCES) == {
        SOURCE_INPUTS,
        SOURCE_PARAMETERS,
        SOURCE_LOSS,
        SOURCE_GRADIENTS,
        SOURCE_LOSS_SCALE,
    }


def test_weights_that_this_step_broke_are_not_its_source() -> None:
    """Looked at after the update they say nothing about what came before it."""
    assert report(findings=Findings(parameters=bad())).source == SOURCE_LOSS
    assert report(findings=Findings(parameters=bad(103))).source == SOURCE_LOSS
    assert report(findings=Findings(parameters=bad()), skipped=True).source == SOURCE_PARAMETERS
    assert report(findings=Findings(parameters=bad(99))).source == SOURCE_PARAMETERS


def test_weights_that_the_step_before_broke_are_the_source() -> None:
    """It was non-finite and made its update; one that was skipped left them alone."""
    seen = Findings(parameters=bad(103))
    assert report(signals(0, grad_norm=nan), findings=seen).source == SOURCE_PARAMETERS
    assert report(signals(0, grad_norm=nan, skipped=True), findings=seen).source == SOURCE_LOSS
    assert report(signals(0, grad_norm=inf, loss_scale=8.0), findings=seen).source == SOURCE_LOSS


def test_a_step_number_that_comes_again_does_not_end_the_silence() -> None:
    """As in a loop that gives the same number until the optimiser really steps."""
    watch = NonFiniteWatch()

    assert [watch.observe(signals(7, loss=nan)) is not None for _ in range(4)] == [
        True, False, False, False,
    ]  # fmt: skip
