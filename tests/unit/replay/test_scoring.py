# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from training_exporter.replay.scoring import Label, Score, Summary, score, summarise


def test_what_was_to_be_found() -> None:
    """One of two spikes, twice, first four rows late, and one anomaly of which nobody knew."""
    labels = [Label("spike", 10, 20), Label("spike", 50, 51)]

    found = score([(14, 15), (18, 30), (70, 70)], 100, labels, "loss_spike")

    assert found == Score(wanted=2, found=1, right=2, wrong=1, delays=(4,), healthy_rows=0)


@pytest.mark.parametrize("doubt", [Label("spike", 10, 20, "low"), Label("restart", 10, 20)])
def test_what_is_doubtful_counts_neither_way(doubt: Label) -> None:
    """Neither an anomaly there is right or wrong, nor is a label that it touches to be found."""
    found = score([(11, 12)], 100, [doubt, Label("spike", 14, 16)], "loss_spike")

    assert (found.wanted, found.right, found.wrong) == (0, 0, 0)


def test_labels_may_have_the_names_of_the_kinds() -> None:
    """Nobody need know the shorter ones."""
    found = score([(14, 14)], 100, [Label("eval_gap", 10, 20)], "eval_gap")

    assert (found.wanted, found.right) == (1, 1)


def test_a_healthy_run() -> None:
    """Is one that somebody called so; what else happened in it is another kind's matter."""
    labels = [Label("healthy", 0, 99), Label("plateau", 50, 99)]

    assert score([(3, 4)], 100, labels, "loss_spike").healthy_rows == 100
    assert score([(3, 4)], 100, labels, "loss_plateau").healthy_rows == 0
    assert score([(3, 4)], 100, labels[1:], "loss_spike").healthy_rows == 0


def test_the_summary() -> None:
    """Over all labels, and over runs so that no single log outweighs the others."""
    scores = [
        Score(wanted=4, found=1, right=1, wrong=0, delays=(2,), healthy_rows=0),
        Score(wanted=1, found=1, right=1, wrong=3, delays=(4,), healthy_rows=0),
        Score(wanted=0, found=0, right=0, wrong=1, delays=(), healthy_rows=500),
        Score(wanted=0, found=0, right=0, wrong=0, delays=(), healthy_rows=1500),
    ]

    assert summarise(scores) == Summary(
        wanted=5, recall=2 / 5, run_recall=(1 / 4 + 1) / 2,
        precision=2 / 6, run_precision=(1 + 1 / 4 + 0) / 3,
        false_per_thousand=0.5, healthy_runs=2, healthy_alarmed=1, delay=3,
    )  # fmt: skip


def test_nothing_to_divide_by() -> None:
    """Is absent, not 0."""
    summary = summarise([Score(0, 0, 0, 0, (), 0)])

    assert (summary.recall, summary.precision, summary.false_per_thousand) == (None, None, None)
