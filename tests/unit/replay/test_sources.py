# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from tests.unit.replay.logs import rows, write_csv, write_json_lines, write_trainer_state
from training_exporter.replay.formats import CSV, JSON_LINES, TRAINER_STATE, Format
from training_exporter.replay.sources import find_source
from training_exporter.replay.trouble import ReplayError, Troubles


def found_in(path: Path) -> tuple[Format, Path, list[str]]:
    """Format and file of what is replayed, and what is noted."""
    troubles = Troubles()
    source = find_source(path, troubles)
    (file,) = source.paths
    return source.format, file, troubles.lines()


def state_in(folder: Path, rows_of_it: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return write_trainer_state(folder / "trainer_state.json", rows()[:rows_of_it])


@pytest.mark.parametrize("left", [0, 30, 600])
def test_a_damaged_checkpoint_does_not_hide_the_one_before(tmp_path: Path, left: int) -> None:
    """Empty, without a row, or cut off where there are some."""
    good = state_in(tmp_path / "checkpoint-100", 100)
    bad = state_in(tmp_path / "checkpoint-1000", 200)
    bad.write_bytes(bad.read_bytes()[:left])

    assert found_in(tmp_path) == (
        TRAINER_STATE,
        good,
        [f"1 state that is empty or damaged and was not read, at {bad}"],
    )


def test_of_damaged_states_the_last_one_with_rows_is_read(tmp_path: Path) -> None:
    """As far as it goes."""
    states = [state_in(tmp_path / f"checkpoint-{step}", step) for step in (100, 200, 300)]
    for state, left in zip(states, (5000, 5000, 0), strict=True):
        state.write_bytes(state.read_bytes()[:left])

    assert found_in(tmp_path)[1] == states[1]


def test_a_damaged_state_does_not_hide_other_logs(tmp_path: Path) -> None:
    """It is noted; alone, it is what is told to be wrong."""
    state = state_in(tmp_path, 1)
    state.write_bytes(b"{")
    assert found_in(tmp_path)[:2] == (TRAINER_STATE, state)

    log = write_csv(tmp_path / "metrics.csv", rows())
    assert found_in(tmp_path) == (
        CSV,
        log,
        [f"1 state that is empty or damaged and was not read, at {state}"],
    )


def test_states_that_lie_deeper(tmp_path: Path) -> None:
    """Are found, the last of the largest run, and the other runs are noted."""
    first = state_in(tmp_path / "group" / "a" / "checkpoint-5", 5)
    assert found_in(tmp_path) == (TRAINER_STATE, first, [])

    state_in(tmp_path / "group" / "b" / "checkpoint-10", 10)
    last = state_in(tmp_path / "group" / "b", 20)
    assert found_in(tmp_path) == (
        TRAINER_STATE,
        last,
        [f"1 other run in that folder, which is not read, at {first.parents[1]}"],
    )


def test_packed_logs_in_a_folder(tmp_path: Path) -> None:
    """Are found by the name that they have unpacked."""
    path = tmp_path / "version_0" / "metrics.csv.gz"
    path.parent.mkdir()
    path.write_bytes(gzip.compress(write_csv(tmp_path / "log", rows()).read_bytes()))

    assert found_in(tmp_path) == (CSV, path, [])
    assert find_source(path, Troubles()).is_archive
    assert not find_source(tmp_path / "log", Troubles()).is_archive


def test_the_only_log_of_another_name(tmp_path: Path) -> None:
    """Is taken, whatever else lies there; one of a known name goes before it."""
    (tmp_path / "notes.csv").write_text("")
    (tmp_path / "notes.txt").write_text("step,loss\n1,2\n")
    (tmp_path / "words.jsonl").write_text("all went well\nindeed\n")
    lines = write_json_lines(tmp_path / "run.jsonl", rows())
    assert found_in(tmp_path) == (JSON_LINES, lines, [])

    known = write_csv(tmp_path / "metrics.csv", rows())
    assert found_in(tmp_path) == (CSV, known, [])


def test_several_logs_of_other_names(tmp_path: Path) -> None:
    """Are told, so that one can be named."""
    paths = [write_csv(tmp_path / f"{number}.csv", rows()[:3]) for number in range(7)]

    with pytest.raises(ReplayError, match=r"several logs in .*; name one of them: ") as raised:
        find_source(tmp_path, Troubles())

    assert str(raised.value).endswith(f"{', '.join(map(str, paths[:5]))} and 2 more")


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    """It can be read once, and may keep one waiting."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    with pytest.raises(ReplayError, match="is neither a file nor a folder"):
        find_source(pipe, Troubles())
