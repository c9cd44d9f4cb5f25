# SPDX-License-Identifier: Apache-2.0
"""What a summary says of a run, in words."""

from __future__ import annotations

from training_exporter.snapshot import Best
from training_exporter.summary.making import KindFound, RunSummary
from training_exporter.summary.text import (
    MOST_METRICS,
    MOST_STEPS,
    headline,
    summary_block,
    summary_rows,
)

FULL = RunSummary(
    "tiny", 0, "crashed", "OutOfMemoryError", 1200, 1200.0, 2.5, 2.75, Best(2.25, 1100),
    {"wiki": 3.0, "qa": 4.0}, 20_000_000.0, 500.0, 12_500.0, 2.0,
    {"steps": 75.0, "evaluation": 25.0, "logging": 0.01}, {},
    (KindFound("loss_spike", 2, (30, 900)),),
    {"loss": 3.0}, 4.0, 0.25, {"0": 3 * 2**30}, {"step": 0.25, "observe": 0.25},
)  # fmt: skip


def test_the_block_of_a_log() -> None:
    """In ASCII, since nobody knows what a log file can hold."""
    block = summary_block(FULL)

    assert block.isascii()
    assert block.splitlines() == [
        "run tiny crashed by OutOfMemoryError at step 1,200",
        "  loss             2.5 at the end, 2.75 on average (EMA), 2.25 at best, step 1,100",
        "  evaluation loss  3 on wiki, 4 on qa",
        "  steps            1,200, 3 with NaN or Inf in the loss, 4 skipped by the optimiser",
        "  trained on       20.0 M tokens, 500 samples",
        "  time             1 min 40 s: steps 75.0 %, evaluation 25.0 %",
        "  throughput       12,500 tokens/s, 2 samples/s",
        "  anomalies        loss_spike 2 (at step 30, 900)",
        "  clipped          25.0 % of steps",
        "  peak memory      3.00 GiB on cuda:0",
        "  this exporter    500 ms, 0.5 % of the time",
    ]


def test_what_is_not_known_has_no_line() -> None:
    """Of a run that crashed at once there is little to say."""
    crashed = RunSummary("tiny", 0, "crashed", "ValueError")

    assert headline(crashed) == "run tiny crashed by ValueError before its first step"
    assert dict(summary_rows(crashed)) == {"steps": "0", "anomalies": "none"}


def test_many_anomalies_are_counted() -> None:
    """Only the last are named, and said to be the last."""
    found = KindFound("loss_spike", 50, tuple(range(31, 51)))

    text = dict(summary_rows(FULL._replace(anomalies=(found,))))["anomalies"]

    assert text.startswith("loss_spike 50 (last at step 43, 44")
    assert text.count(",") == MOST_STEPS - 1


def test_anomalies_of_which_no_step_is_remembered() -> None:
    """After a restart of the process the count goes on, and says nothing of steps."""
    text = dict(summary_rows(FULL._replace(anomalies=(KindFound("restart", 1, ()),))))

    assert text["anomalies"] == "restart 1"


def test_a_crash_says_why() -> None:
    """First of all, below the line that says by what."""
    rows = summary_rows(FULL._replace(reason="CUDA out of memory"))

    assert rows[0] == ("error", "CUDA out of memory")


def test_a_run_that_went_on_from_a_checkpoint() -> None:
    """Its last step has a higher number than it has taken steps."""
    resumed = FULL._replace(steps=20.0, steps_in_weights=80.0, non_finite_steps={"loss": 3.0})

    text = dict(summary_rows(resumed._replace(skipped_steps=0.0)))["steps"]

    assert text == "20 since a checkpoint, 80 with those before it, 3 with NaN or Inf in the loss"


def test_a_run_that_went_back_to_a_checkpoint() -> None:
    """In one process, or counting on from the one before: some steps are lost."""
    back = RunSummary("tiny", 0, "completed", steps=100.0, steps_in_weights=80.0)

    assert dict(summary_rows(back))["steps"] == "100, of which 80 are in the weights"
    whole = dict(summary_rows(back._replace(steps_in_weights=100.0)))
    assert whole["steps"] == "100"


def test_results_of_evaluations() -> None:
    """A few of each data set, without those by which the Trainer says how fast it was."""
    speed = {"runtime": 3.0, "samples_per_second": 9.0, "model_preparation_time": 0.1}
    many = {f"m{number}": float(number) for number in range(MOST_METRICS + 2)}
    results = {"wiki": {"f1": 0.5, **speed}, "qa": many, "speed": speed}

    text = dict(summary_rows(FULL._replace(eval_metrics=results)))["evaluation"]

    assert text == "f1 0.5 on wiki; m0 0, m1 1, m2 2, m3 3 and 2 more on qa"
