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
from training_exporter.replay.scoring import Label
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
    (tmp_path / "a" / "run4.5").mkdir()
    for name in ("run2.csv.gz", "run3.jsonl", "run3x.csv", "v1.5.csv"):
        (tmp_path / "a" / name).write_text("")

    found = find_logs(tmp_path, ["run1", "run2", "run3", "v1.5", "run4"])

    names = {run: [path.name for path in paths] for run, paths in found.items()}
    assert names == {
        "run1": ["run1"], "run2": ["run2.csv.gz"], "run3": ["run3.jsonl"], "v1.5": ["v1.5.csv"],
        "run4": [],
    }  # fmt: skip


def test_a_name_that_another_begins_with_is_another(logs: Path, tmp_path: Path) -> None:
    """Neither does `bad.2.csv` stand for `bad`, nor for a run that is not there."""
    write_csv(logs / "bad.2.csv", rows()[:20])
    write_csv(logs / "gone.2.csv", rows()[:20])
    labels = read_labels(write_labels(tmp_path / "labels.tsv", "bad nan 1 2", "gone nan 1 2"))

    trials, missing = play_all(logs, labels, Plan())

    assert [trial.judges[0].rows for trial in trials] == [ROWS]
    assert missing == [f"gone: no file or folder below {logs} is called gone"]


def test_of_what_is_called_like_a_run_the_log_is_taken(logs: Path, tmp_path: Path) -> None:
    """Not its settings, nor a picture of it, nor a folder without a log."""
    (logs / "bad.config").write_text('{"lr": 0.1}')
    (logs / "bad.svg").write_text("<svg>")
    (logs / "bad").mkdir()
    labels = read_labels(write_labels(tmp_path / "labels.tsv", "bad nan 1 2"))

    trials, missing = play_all(logs, labels, Plan())

    assert (len(trials), missing) == (1, [])


def test_a_folder_and_the_log_in_it_are_one(tmp_path: Path) -> None:
    """As W&B and others call both like the run."""
    run = tmp_path / "logs" / "run"
    run.mkdir(parents=True)
    write_json_lines(run / "trainer_log.jsonl", rows())
    write_csv(run / "run.csv", rows()[:20])
    labels = read_labels(write_labels(tmp_path / "labels.tsv", "run nan 1 2"))

    trials, missing = play_all(tmp_path / "logs", labels, Plan())

    assert [trial.judges[0].rows for trial in trials] == [ROWS]
    assert missing == []


def test_a_run_of_which_there_are_two_logs_is_left_out(logs: Path, tmp_path: Path) -> None:
    """With their names; so it is with what is wrong with each when none can be read."""
    (logs / "below").mkdir()
    write_csv(logs / "below" / "bad.csv", rows())
    (logs / "none.csv").write_text("")
    (logs / "none.json").write_text('{"lr": 0.1}')
    labels = read_labels(
        write_labels(tmp_path / "labels.tsv", "bad nan 1 2", "none nan 1 2", "good nan 1 2")
    )

    trials, missing = play_all(logs, labels, Plan())

    assert len(trials) == 1
    assert missing[0] == "bad: 2 logs are called so, expected one: bad.csv, below/bad.csv"
    assert "none.csv is empty" in missing[1]
    assert "; none.json: no loss and no gradient norm is known" in missing[1]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    """Is what is told, rather than that it lacks a run."""
    labels = read_labels(write_labels(tmp_path / "labels.tsv", "bad nan 1 2"))

    with pytest.raises(ReplayError, match=r"there is no folder .*none"):
        play_all(tmp_path / "none", labels, Plan())


def test_labels_beyond_the_end_of_a_log(logs: Path, tmp_path: Path) -> None:
    """Count as missed no more than they count as found; what only ends there counts."""
    lines = [f"good spike {SPIKE - 1} 400", "good spike 500 600", "good healthy 0 10000"]
    labels = read_labels(write_labels(tmp_path / "labels.tsv", *lines))

    trials, _ = play_all(logs, labels, Plan())

    end = SPIKE - 2
    assert trials[0].notes == [
        f"good: 2 labels beyond its end at row {end}, which are not counted, the first at rows"
        f" {SPIKE - 1} to 400",
        f"good: 1 label that goes on beyond its end at row {end}, at rows 0 to 10,000",
    ]
    found = summaries(trials, labels.unit)["robust"]
    assert (found["loss_spike"].wanted, found["loss_spike"].healthy_runs) == (0, 1)


def test_labels_by_step_beyond_the_end_of_a_log(tmp_path: Path) -> None:
    """It ends with the steps of its last row, or of that before a restart which had more."""
    log = rows(stride=10)
    write_csv(tmp_path / "run.csv", [*log, *log[-20:-10]])
    lines = [f"run spike {last - 5} {last}" for last in (ROWS * 10 + 9, ROWS * 10 + 15)]
    labels = read_labels(
        write_labels(tmp_path / "labels.tsv", *lines, header="id kind first_step last_step")
    )

    trials, _ = play_all(tmp_path, labels, Plan())

    assert len(trials[0].labels) == 1
    assert trials[0].notes[-1] == (
        "run: 1 label beyond its end at step 3,009, which is not counted, at steps 3,010 to 3,015"
    )


def test_what_is_wrong_with_a_log_is_told(logs: Path, tmp_path: Path) -> None:
    """As a replay tells it, with the name of the run."""
    with (logs / "good.jsonl").open("a") as file:
        file.write("no JSON\n")
    labels = read_labels(write_labels(tmp_path / "labels.tsv", "bad nan 1 2", "good nan 1 2"))

    trials, _ = play_all(logs, labels, Plan())

    assert [len(trial.notes) for trial in trials] == [0, 1]
    assert trials[1].notes[0].startswith("good: 1 line")


def test_labels_that_a_spreadsheet_wrote(tmp_path: Path) -> None:
    """Begin with a mark of their encoding."""
    path = write_labels(
        tmp_path / "labels.tsv", "a spike 1 2", header="\ufeffid kind first_row last_row"
    )

    assert list(read_labels(path).by_run) == ["a"]


def test_whole_numbers_with_a_point(tmp_path: Path) -> None:
    """Are whole numbers still."""
    labels = read_labels(write_labels(tmp_path / "labels.tsv", "a spike 140.0 1.6e2"))

    assert labels.by_run["a"] == [Label("spike", 140, 160)]


@pytest.mark.parametrize(
    ("lines", "header", "message"),
    [
        (["a spike 1 2"], "id kind first last", "must have the columns id, kind, first_row"),
        (["a spike one 2"], "id kind first_row last_row", "line 2: first and last must be whole"),
        (["a spike 1.5 2"], "id kind first_row last_row", "line 2: first and last must be whole"),
        (["a spike 1 1e999"], "id kind first_row last_row", "line 2: first and last must be whole"),
        (
            ["a spike 1 2", "a spike 5 4"],
            "id kind first_row last_row",
            "line 3: first must be 0 or more and last no less than first, not 5 and 4",
        ),
        (["a spike -5 4"], "id kind first_row last_row", "line 2: first must be 0 or more"),
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
