# SPDX-License-Identifier: Apache-2.0
"""What a summary says of a run, in words."""

from __future__ import annotations

from training_exporter.snapshot import Best
from training_exporter.summary.making import KindFound, RunSummary
from training_exporter.summary.text import MOST_STEPS, headline, summary_block, summary_rows

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
