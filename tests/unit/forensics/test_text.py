# SPDX-License-Identifier: Apache-2.0
"""A report in words."""

from __future__ import annotations

from dataclasses import replace
from math import inf, nan
from pathlib import Path

import pytest

from tests.unit.forensics.events import ABOUT, CLEAN, bad, report, signals
from tests.unit.forensics.test_jsonform import FULL
from training_exporter.forensics.cause import likely_causes
from training_exporter.forensics.jsonform import ReportError
from training_exporter.forensics.report import Findings, Gap, Inspection
from training_exporter.forensics.store import ReportStore
from training_exporter.forensics.text import INDICES, ROWS, explain, explained, summary
from training_exporter.program import program


def section(text: str, title: str) -> str:
    """What stands under a heading that begins with `title`."""
    return text.partition(f"## {title}")[2].partition("\n## ")[0]


def test_explain_reads_a_file_and_says_what_it_is(tmp_path: Path) -> None:
    """What was non-finite, when, and which run: at the top."""
    text = explain(ReportStore(tmp_path).save(FULL))
    headline, _, where = text.splitlines()[:3]
    assert headline == "# Loss NaN and gradient norm NaN at step 100"
    assert where == (
        "run `my-run`, rank 3, 2023-11-14 22:15:00 UTC, epoch 0.25, model `GPT2LMHeadModel`, "
        "framework `transformers`."
    )


def test_a_file_that_is_no_report_is_an_error(tmp_path: Path) -> None:
    """The command prints its one line."""
    with pytest.raises(ReportError, match="No such file"):
        explain(tmp_path / "absent.json")


def test_the_likeliest_cause_stands_first_with_three_things_to_try() -> None:
    """The others follow with what speaks for them."""
    causes = likely_causes(FULL)
    text = section(explained(FULL), "Likely cause")
    assert causes[0].because in text
    assert [text.index(f"{n}. {advice}") > 0 for n, advice in enumerate(causes[0].advice, 1)]
    assert "Also possible" in text
    assert all(other.because in text.partition("Also possible")[2] for other in causes[1:])
    assert "Also possible" not in explained(report())


def test_all_that_was_seen_is_said() -> None:
    """Each part of a full report has its line."""
    seen = section(explained(FULL), "What was seen")
    for part in (
        "Source `inputs`",
        "First layer with a non-finite gradient: `L03.attn.q`.",
        "`h.3.attn` (Attention), seen at step 101: 3 NaN and 1 Inf of 2 x 8 (float16); "
        "what went in was finite.",
        "1 of 28 input tensors are not finite (looked at in step 100)",
        "h.0.weight (4 x 3 x 8, float32) holds 12 NaN and 1 Inf",
        "Labels `labels`: 9, of which 1 are -100.",
        "1 of 28 parameters and buffers are not finite (looked at in step 103)",
        "only a checkpoint from before step 100 is good to go on from",
        "Learning rate: 0.001 (group `0`).",
        "Loss scale: 1024.",
        "Rows of the batch: 5, 7.",
        "Versions: torch 2.13.0.",
    ):
        assert part in seen


def test_finite_parts_are_said_to_be_finite() -> None:
    """That the batch is clean is worth as much as that it is not."""
    text = explained(report(findings=Findings(inputs=CLEAN, parameters=Inspection(101, 28, 0))))
    assert "All 3 input tensors are finite (looked at in step 100)." in text
    assert "All 28 parameters and buffers are finite (looked at in step 101)." in text
    assert "checkpoint" not in section(text, "What was seen")


@pytest.mark.parametrize(
    ("skipped", "parameters", "said"),
    [
        (None, None, "Unless the update was left out: only a checkpoint from before step 100"),
        (False, None, "The update carried it into the weights: only a checkpoint"),
        (None, bad(101), "The update carried it into the weights: only a checkpoint"),
        (False, bad(before_update=True), "The update carried it into the weights"),
        (True, None, None),
        (None, Inspection(101, 28, 0), None),
    ],
)
def test_it_says_whether_the_weights_are_lost(
    skipped: bool | None, parameters: Inspection | None, said: str | None
) -> None:
    """As surely as it is known, and not where the weights were left alone."""
    text = explained(report(findings=Findings(parameters=parameters), skipped=skipped))
    seen = section(text, "What was seen")
    assert (said in seen) if said else ("checkpoint" not in seen)


def test_the_table_has_the_last_steps() -> None:
    """Ten rows of the fifty, the event's own last, with a blank for what is unknown."""
    last = report(signals(0, loss=None, grad_norm=inf, loss_scale=8.0, skipped=True))
    rows = section(explained(last), "The last 10 steps").strip().splitlines()[2:]
    assert len(rows) == ROWS
    assert rows[-2:] == [
        "| 99 |  | inf | 0.001 | 8 | yes |",
        "| 100 | NaN | NaN | 0.001 |  |  |",
    ]


def test_what_is_not_known_is_said_with_why() -> None:
    """And where all is known there is no such section."""
    gap = Gap("gradients", "they were gone")
    text = section(explained(report(findings=Findings(gaps=(gap,)))), "What is not known")
    assert "- gradients: they were gone.\n" in text
    assert "- first layer: the pass over the layers did not run" in text
    assert "What is not known" not in explained(replace(FULL, gaps=()))


def test_long_lists_are_cut_and_counted() -> None:
    """The file has them all."""
    many = Inspection(100, 400, 300, bad().worst * 50)
    seen = Findings(parameters=many, batch_indices=tuple(range(500)))
    text = explained(report(findings=seen))
    assert text.count("h.0.weight") == 10
    assert "- and 290 more" in text
    assert f", {INDICES - 1} and 480 more." in text


def test_the_log_line_is_one_line() -> None:
    """With the cause, and how to read on; without a file nothing is promised."""
    line = summary(replace(report(), about=ABOUT._replace(run="a\nb")), Path("r.json"))
    assert line.startswith("loss NaN and gradient norm NaN at step 100; likely cause: a division")
    assert line.endswith(f"; for more: {program()} explain r.json")
    assert "\n" not in line
    assert "explain" not in summary(report())


def test_names_from_elsewhere_are_no_markup() -> None:
    """A run may be called what it likes."""
    text = explained(replace(report(), about=ABOUT._replace(run="`x`\n# y")))
    assert "run `'x' # y`, rank 3" in text


def test_a_source_and_a_time_of_another_world_do_not_break_it() -> None:
    """A report may come from a later release, and its clock from anywhere."""
    text = explained(replace(FULL, source="cosmic_ray", timestamp=nan))
    assert "Source `cosmic_ray`: a source this release does not know." in text
    assert "an unknown time" in text
