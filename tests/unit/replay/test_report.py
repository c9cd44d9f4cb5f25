# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Iterable, Mapping
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text

from tests.unit.replay.logs import rows, scalar_event, tf_record, write_csv, write_trainer_state
from training_exporter.replay.playing import Plan, Playback
from training_exporter.replay.report import for_person, for_program


def played(path: Path, *profiles: str) -> Playback:
    playback = Playback(path, Plan(profiles=profiles or ("robust",)))
    playback.play()
    return playback


def lines_of(playback: Playback) -> list[str]:
    return [str(part) for part in for_person(playback) if isinstance(part, Text)]


def table_of(playback: Playback, columns: int) -> list[str]:
    """The lines of the table, as a terminal of that width shows them."""
    written = StringIO()
    console = Console(width=columns, file=written)
    for part in for_person(playback):
        if not isinstance(part, Text):
            console.print(part)
    return [line.rstrip() for line in written.getvalue().splitlines() if line.strip()]


def exploding(*, start: int = 1) -> list[dict[str, float]]:
    """A run whose gradients explode for 30 rows, and whose loss is no number from then on."""
    records: list[dict[str, float]] = []
    for number, row in enumerate(rows()):
        step = row["step"] + start - 1
        norm = 40.0 if 100 <= number < 130 else row["grad_norm"]
        loss = float("nan") if number >= 100 else row["loss"]
        records.append({"step": step, "loss": loss, "grad_norm": norm})
    return records


def write_events(path: Path, steps: Iterable[int]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(tf_record(scalar_event(step, "loss", 2.0)) for step in steps))
    return path


def test_each_profile_has_its_own_threshold_and_duration(tmp_path: Path) -> None:
    """On a row of its own where they differ; what is equal to what is shown has one row."""
    playback = played(write_csv(tmp_path / "log.csv", exploding()), "robust", "textbook")

    shown = [line.split() for line in table_of(playback, 100)[2:]]

    found = for_program(playback)["profiles"]
    expected = []
    for profile, judgement in found.items():
        (one,) = [each for each in judgement["anomalies"] if each["kind"] == "gradient_explosion"]
        expected.append(
            ["101", "gradient_explosion", "40", f"{one['threshold']:.4g}", str(one["steps"]),
             "steps", profile]
        )  # fmt: skip
    assert expected[0][:-1] != expected[1][:-1]
    assert [line for line in shown if line[1] == "gradient_explosion"] == expected
    assert [line[-3:] for line in shown if line[1] == "non_finite"] == [
        ["robust", "and", "textbook"]
    ]


@pytest.mark.parametrize(
    ("columns", "profiles"),
    [(80, ["robust"]), (80, ["robust", "textbook"]), (66, ["robust", "textbook"])],
)
def test_a_table_in_a_narrow_terminal(tmp_path: Path, columns: int, profiles: list[str]) -> None:
    """Has all, though in more lines, however great the steps are."""
    log = write_csv(tmp_path / "log.csv", exploding(start=9_999_000))

    shown = table_of(played(log, *profiles), columns)

    told = "".join(shown)
    assert "\N{HORIZONTAL ELLIPSIS}" not in told
    assert told.count("9,999,100") == len(profiles) + 1
    assert all(cell in told for cell in ("Threshold", "gradient_explosion", "8.856", "200"))
    assert max(map(len, shown)) <= columns


@pytest.mark.parametrize("number", [1, 2])
def test_a_log_of_one_row(tmp_path: Path, number: int) -> None:
    """Has a step, though not how far rows are apart."""
    path = tmp_path / "log.csv"
    path.write_text("step,loss\n" + "5,2.0\n" * number)

    told = lines_of(played(path))

    assert "steps 5 to 5" in told[0]
    assert not any("No step is logged" in line for line in told)


def test_a_log_without_steps(tmp_path: Path) -> None:
    """Says that rows are counted."""
    path = tmp_path / "log.csv"
    path.write_text("loss,lr\n2.0,1\n2.1,1\n")

    assert "No step is logged: rows are counted instead." in lines_of(played(path))


def test_which_file_of_a_folder_was_read(tmp_path: Path) -> None:
    """Is told at the head, from that folder on."""
    state = tmp_path / "out" / "checkpoint-7" / "trainer_state.json"
    state.parent.mkdir(parents=True)
    write_trainer_state(state, rows())

    of_folder, of_file = lines_of(played(tmp_path / "out"))[0], lines_of(played(state))[0]

    kind = "Hugging Face trainer state"
    assert f"out: {kind} in checkpoint-7/trainer_state.json, 300 rows," in of_folder
    assert of_file.startswith(f"{state}: {kind}, 300 rows,")


def test_which_files_of_a_folder_were_read(tmp_path: Path) -> None:
    """How many, and the folder in which they lie where that is another."""
    write_events(tmp_path / "tb" / "b" / "events.out.tfevents.1", range(1, 20))
    write_events(tmp_path / "tb" / "b" / "events.out.tfevents.2", range(20, 30))
    write_events(tmp_path / "tb" / "c" / "events.out.tfevents.3", range(1, 5))

    of_all, of_one = lines_of(played(tmp_path / "tb")), lines_of(played(tmp_path / "tb" / "b"))

    assert "tb: TensorBoard events in 2 files of b, 29 rows," in of_all[0]
    assert "b: TensorBoard events in 2 files, 29 rows," in of_one[0]


def write_many(path: Path, others: int) -> Path:
    records: list[Mapping[str, float]] = [
        {"step": step, "loss": 2.0, **{f"m{number}": 1.0 for number in range(others)}}
        for step in (1, 2)
    ]
    return write_csv(path, records)


@pytest.mark.parametrize(
    ("others", "told"),
    [
        (1, "Not taken: 'm0'; --map SIGNAL=NAME takes one."),
        (
            10,
            "Not taken: 'm0', 'm1', 'm2', 'm3', 'm4', 'm5', 'm6', 'm7', and 2 more;"
            " --map SIGNAL=NAME takes one.",
        ),
    ],
)
def test_numbers_that_are_no_signal(tmp_path: Path, others: int, told: str) -> None:
    """Are named, so that it can be seen what there is to map; a program gets all names."""
    playback = played(write_many(tmp_path / "log.csv", others))

    assert lines_of(playback)[2] == told
    assert for_program(playback)["not_taken"] == [f"m{number}" for number in range(others)]


def test_a_log_of_which_all_was_taken(tmp_path: Path) -> None:
    """Has no line about what was not."""
    playback = played(write_many(tmp_path / "log.csv", 0))

    assert not any(line.startswith("Not taken") for line in lines_of(playback))
