# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.replay.logs import (
    NAN,
    ROWS,
    SPIKE,
    rows,
    scalar_event,
    tf_record,
    write_csv,
    write_json_lines,
    write_trainer_state,
)
from training_exporter.detectors import build_detectors
from training_exporter.monitor import TrainingMonitor
from training_exporter.replay.playing import BEGINNING, Plan, Playback
from training_exporter.replay.trouble import ReplayError
from training_exporter.signals import StepSignals


def played(path: Path, **plan: object) -> Playback:
    playback = Playback(path, Plan(**plan))  # type: ignore[arg-type]
    playback.play()
    return playback


def write_events(path: Path, records: list[dict[str, float]]) -> Path:
    path.write_bytes(
        b"".join(
            tf_record(scalar_event(int(record["step"]), f"train/{name}", value))
            for record in records
            for name, value in record.items()
            if name != "step"
        )
    )
    return path


WRITERS: dict[str, Callable[[Path, list[dict[str, float]]], Path]] = {
    "CSV": write_csv,
    "JSON lines": write_json_lines,
    "Hugging Face trainer state": write_trainer_state,
    "TensorBoard events": write_events,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_has_the_same_anomalies(tmp_path: Path, name: str) -> None:
    """The format is known by what is in the file, whatever that is called."""
    playback = played(WRITERS[name](tmp_path / "log", rows()))

    assert playback.source.format.name == name
    assert playback.course.rows == ROWS
    found = [(each.begun.kind, each.begun.step) for each in playback.judges[0].episodes]
    assert found == [("loss_spike", SPIKE), ("non_finite", NAN)]


@pytest.mark.parametrize("profile", ["robust", "textbook"])
def test_the_verdict_is_that_of_a_live_monitor(tmp_path: Path, profile: str) -> None:
    """The same counts, kind by kind."""
    live = TrainingMonitor(build_detectors(profile))
    for row in rows():
        rate = {"0": row["learning_rate"]}
        live.observe(StepSignals(int(row["step"]), 0.0, row["loss"], row["grad_norm"], None, rate))
    expected = {status.kind: status.total for status in live.snapshot.anomalies}

    judge = played(write_csv(tmp_path / "log.csv", rows()), profiles=(profile,)).judges[0]

    assert judge.totals() == expected
    assert sum(expected.values()) > 1


def test_how_long_an_anomaly_lasted(tmp_path: Path) -> None:
    """From its first finding to its last, in rows and in steps."""
    records = rows(stride=10)
    for record in records[NAN : NAN + 5]:
        record["loss"] = float("nan")

    playback = played(write_csv(tmp_path / "log.csv", records))

    episode = playback.judges[0].episodes[-1]
    assert playback.stride == 10
    assert (episode.begun.step, episode.last_step) == (NAN * 10, NAN * 10 + 50)
    assert (episode.first_row, episode.last_row) == (NAN - 1, NAN + 4)
    assert episode.over


def test_what_goes_on_at_the_end_is_not_over(tmp_path: Path) -> None:
    """Nobody knows how long it would have lasted."""
    records = rows()[:NAN]

    assert not played(write_csv(tmp_path / "log.csv", records)).judges[0].episodes[-1].over


def test_windows_of_the_textbook_are_in_steps(tmp_path: Path) -> None:
    """200 steps are 20 rows where a row is 10 steps; the robust profile was tuned on rows."""
    log = write_csv(tmp_path / "log.csv", rows(stride=10))
    profiles = ("robust", "textbook")

    robust, textbook = played(log, profiles=profiles).judges
    assert robust.options == {}
    assert textbook.options["loss_plateau"] == {"window": 20}

    options = {"loss_plateau": {"window": 500, "warmup": 200}}
    robust, textbook = played(log, profiles=profiles, options=options).judges
    assert robust.options == {"loss_plateau": {"warmup": 200}}
    assert textbook.options["loss_plateau"] == {"window": 50}

    assert played(log, profiles=profiles, windows_in_steps=False).judges[1].options == {}


def test_what_is_not_judged_is_told(tmp_path: Path) -> None:
    """A log without gradient norms says nothing of them."""
    records = [{"step": row["step"], "loss": row["loss"]} for row in rows()]

    judge = played(write_csv(tmp_path / "log.csv", records)).judges[0]

    assert {"gradient_explosion", "eval_gap", "throughput_drop"} <= set(judge.never_ready())
    assert "loss_spike" not in judge.never_ready()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; expected a Hugging Face"),
        (b"PK\x03\x04 zipped", "no log of a known format; expected"),
        (b"all went well\nindeed", "no log of a known format"),
        (b"step,accuracy\n1,2\n", "--map loss=NAME"),
        (b"step,loss\n", "can be replayed as CSV: 1 header without a row"),
        (b"step,loss\n1,?\n2,?\n", "no numbers"),
        (b'{"log_history": []}', "trainer state: it is empty"),
    ],
)
def test_nothing_to_replay(tmp_path: Path, content: bytes, message: str) -> None:
    """Says what was expected, or what was wrong."""
    path = tmp_path / "log"
    path.write_bytes(content)

    with pytest.raises(ReplayError, match=message):
        played(path)


def test_folders(tmp_path: Path) -> None:
    """The last checkpoint's state counts, and one that lies beside the checkpoints more."""
    with pytest.raises(ReplayError, match="there is no"):
        played(tmp_path / "none")
    with pytest.raises(ReplayError, match="no log in"):
        played(tmp_path)

    for step in (90, 100, 110, 120):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        write_trainer_state(folder / "trainer_state.json", rows()[:step])
        assert played(tmp_path).course.rows == step

    write_trainer_state(tmp_path / "trainer_state.json", rows())
    assert played(tmp_path).course.rows == ROWS


def test_event_files_of_one_run_are_read_one_after_another(tmp_path: Path) -> None:
    """Those of another run below the same folder are told and left alone."""
    run, other = tmp_path / "run", tmp_path / "other"
    run.mkdir()
    other.mkdir()
    write_events(run / "events.out.tfevents.1.host", rows()[:100])
    write_events(run / "events.out.tfevents.2.host", rows()[100:])
    write_events(other / "events.out.tfevents.1.host", rows()[:50])

    playback = played(tmp_path)

    assert playback.course.rows == ROWS
    assert playback.troubles.lines() == [
        f"1 other run in that folder, which is not read, at {other}"
    ]


def test_progress_ends_at_the_size_of_the_file(tmp_path: Path) -> None:
    """So that a bar is full at the end."""
    path = write_csv(tmp_path / "log.csv", rows() * 5)
    told: list[int] = []

    Playback(path, Plan()).play(told.append)

    assert 0 < told[0] < told[-1]
    assert told[-1] == path.stat().st_size


def test_where_no_step_was_logged_rows_are_counted(tmp_path: Path) -> None:
    """`add_scalar` without a step writes 0 for each."""
    records = [{**row, "step": 0.0} for row in rows()]
    playback = played(write_events(tmp_path / "log", records))

    assert playback.judges[0].totals()["restart"] == 0
    assert (playback.course.first_step, playback.course.last_step) == (1, ROWS)
    assert playback.troubles.lines() == ["1 step column that is not used, as it is always 0"]


def test_a_step_in_fractions_is_none(tmp_path: Path) -> None:
    """Rows are counted, unless the user says that it is the step: that is an error."""
    log = write_csv(tmp_path / "log.csv", [{**row, "step": row["step"] / 10} for row in rows()])
    playback = played(log)

    assert playback.course.last_step == ROWS
    assert playback.troubles.lines() == [
        "1 step column that is not used, as it has values such as 0.1"
    ]
    with pytest.raises(ReplayError, match=r"'step' is no step: it has values such as 0\.1"):
        played(log, names={"step": "step"})


def test_a_name_that_comes_late(tmp_path: Path) -> None:
    """As that of the first evaluation; one that never comes is told at the end."""
    records = [{"step": step, "loss": 2.0} for step in range(1, BEGINNING + 1)]
    last: dict[str, float] = {"step": BEGINNING, "held_out": 2.5}
    log = write_json_lines(tmp_path / "log", [*records, last])
    playback = played(log, names={"eval_loss": "held_out"})
    never = played(log, names={"eval_loss": "other"})

    assert playback.course.eval_losses == {"eval": 2.5}
    assert playback.troubles.lines() == []
    assert never.troubles.lines() == ["1 name of --map that no value has, at 'other'"]


def test_a_name_without_which_nothing_can_be_judged(tmp_path: Path) -> None:
    """Is refused at once, however long the log is; so is a step."""
    records = [{"step": step, "loss": 2.0} for step in range(1, BEGINNING + 2)]
    log = write_json_lines(tmp_path / "log", records)

    for signal in ("loss", "grad_norm", "step"):
        with pytest.raises(ReplayError, match="no value is called 'nope'"):
            played(log, names={signal: "nope"})
