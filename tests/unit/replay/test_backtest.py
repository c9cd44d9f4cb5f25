# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from tests.unit.replay.logs import NAN, ROWS, SPIKE, rows, write_csv, write_json_lines
from training_exporter.replay.backtest import (
    STEPS,
    find_logs,
    play_all,
    read_labels,
    summaries,
    table_of,
)
from training_exporter.replay.playing import Plan
from training_exporter.replay.trouble import ReplayError


def write_labels(path: Path, *lines: str, header: str = "id kind first_row last_row") -> Path:
    text = "\n".join([header, *lines]).replace(" ", "\t")
    path.write_text(text + "\n", encoding="utf-8")
    return path


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """A run in which two things went wrong, and one in which nothing did."""
    folder = tmp_path / "logs"
    folder.mkdir()
    write_csv(folder / "bad.csv", rows(stride=10))
    write_json_lines(folder / "good.jsonl", rows()[: SPIKE - 1])
    return folder


def test_recall_and_false_alarms(logs: Path, tmp_path: Path) -> None:
    """One label is found at once, one never, and one anomaly is not among the labels."""
    labels = read_labels(
        write_labels(
            tmp_path / "labels.tsv",
            f"bad spike {SPIKE - 3} {SPIKE + 2}", "bad spike 20 25", f"good healthy 0 {SPIKE}",
        )
    )  # fmt: skip

    trials, missing = play_all(logs, labels, Plan(profiles=("robust", "textbook")))
    found = summaries(trials, labels.unit)

    assert missing == []
    spike = found["robust"]["loss_spike"]
    assert (spike.wanted, spike.recall, spike.precision, spike.delay) == (2, 0.5, 1.0, 2)
    assert (spike.healthy_runs, spike.healthy_alarmed, spike.false_per_thousand) == (1, 0, 0)
    assert found["robust"]["non_finite"].precision == 0.0
    assert set(found["textbook"]) < set(found["robust"])


def test_labels_by_step(logs: Path, tmp_path: Path) -> None:
    """The delay is then in steps too."""
    labels = read_labels(
        write_labels(
            tmp_path / "labels.tsv",
            f"bad nan {NAN * 10 - 30} {ROWS * 10} high",
            header="id kind first_step last_step confidence",
        )
    )

    trials, _ = play_all(logs, labels, Plan())

    assert labels.unit == STEPS
    assert summaries(trials, STEPS)["robust"]["non_finite"].delay == 30


def test_runs_that_cannot_be_judged_are_told(logs: Path, tmp_path: Path) -> None:
    """The others are judged; with none left, it is an error."""
    (logs / "empty.csv").write_text("")
    lines = ["bad nan 1 2", "empty nan 1 2", "gone nan 1 2"]
    labels = read_labels(write_labels(tmp_path / "labels.tsv", *lines))

    trials, missing = play_all(logs, labels, Plan())

    assert len(trials) == 1
    assert "empty.csv is empty" in missing[0]
    assert "is called gone" in missing[1]
    alone = read_labels(write_labels(tmp_path / "labels.tsv", lines[2]))
    with pytest.raises(ReplayError, match="none of 1 runs"):
        play_all(logs, alone, Plan())


def test_logs_are_found_by_the_name_of_their_run(tmp_path: Path) -> None:
    """A folder of that name, or a file whatever its extensions, also in folders below."""
    (tmp_path / "a" / "run1").mkdir(parents=True)
    for name in ("run2.csv.gz", "run3.jsonl", "run3x.csv", "v1.5.csv"):
        (tmp_path / "a" / name).write_text("")

    found = find_logs(tmp_path, ["run1", "run2", "run3", "v1.5", "run4"])

    names = {run: path.name for run, path in found.items()}
    assert names == {
        "run1": "run1", "run2": "run2.csv.gz", "run3": "run3.jsonl", "v1.5": "v1.5.csv",
    }  # fmt: skip


def test_labels_that_a_spreadsheet_wrote(tmp_path: Path) -> None:
    """Begin with a mark of their encoding."""
    path = write_labels(
        tmp_path / "labels.tsv", "a spike 1 2", header="\ufeffid kind first_row last_row"
    )

    assert list(read_labels(path).by_run) == ["a"]


@pytest.mark.parametrize(
    ("lines", "header", "message"),
    [
        (["a spike 1 2"], "id kind first last", "must have the columns id, kind, first_row"),
        (["a spike one 2"], "id kind first_row last_row", "line 2: first and last must be whole"),
        (
            ["a spikee 1 2"],
            "id kind first_row last_row",
            "line 2: kind is one of .*spike.*'spikee'",
        ),
        (
            ["a spike 1 2 sure"],
            "id kind first_row last_row confidence",
            "line 2: confidence is one of high, medium, low, not 'sure'",
        ),
        ([], "id kind first_row last_row", "has no label"),
        (["spike 1 2"], "kind first_row last_row id", "line 2: id must be the name of a log"),
    ],
)
def test_labels_that_are_none(tmp_path: Path, lines: list[str], header: str, message: str) -> None:
    """Are refused with what is missing."""
    path = write_labels(tmp_path / "labels.tsv", *lines, header=header)

    with pytest.raises(ReplayError, match=message):
        read_labels(path)
    with pytest.raises(ReplayError, match="cannot read the labels"):
        read_labels(tmp_path / "none.tsv")


def test_the_table_fits_a_narrow_terminal(logs: Path, tmp_path: Path) -> None:
    """No number is cut off at 80 columns."""
    labels = read_labels(write_labels(tmp_path / "labels.tsv", "bad spike 20 25"))
    trials, _ = play_all(logs, labels, Plan())
    (by_kind,) = summaries(trials, labels.unit).values()
    written = StringIO()
    Console(width=80, file=written).print(table_of("robust", by_kind, labels.unit))
    shown = written.getvalue()

    assert "\N{HORIZONTAL ELLIPSIS}" not in shown
    assert "learning_rate_anomaly" in shown
    assert "0.00/0.00" in shown
