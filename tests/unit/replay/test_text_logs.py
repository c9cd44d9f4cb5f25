# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import pytest

from tests.unit.replay.logs import read, rows, write_csv, write_json_lines, write_trainer_state
from training_exporter.replay import text_logs
from training_exporter.replay.csv_logs import csv_rows
from training_exporter.replay.text_logs import json_lines, trainer_state


def test_json_lines_with_nan(tmp_path: Path) -> None:
    """Bare NaN and Infinity are what Python writes."""
    path = tmp_path / "log.jsonl"
    path.write_text('{"loss": NaN, "step": 1}\n{"loss": -Infinity, "step": 2}\n')

    records, troubles = read(json_lines, path)

    assert math.isnan(records[0]["loss"])  # type: ignore[arg-type]
    assert records[1] == {"loss": -math.inf, "step": 2}
    assert troubles == []


def test_damaged_json_lines_are_left_out_and_told(tmp_path: Path) -> None:
    """Once for each kind of damage, with where it was first."""
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step": 1}\n{"st\xff\n\n[1, 2]\n{"step": 2}\n{"step": 3, "lo')

    records, troubles = read(json_lines, path)

    assert records == [{"step": 1}, {"step": 2}]
    assert troubles == [
        "2 lines that are no whole JSON and were left out, the first at line 2",
        "1 line that is no JSON object and was left out, at line 4",
    ]


def test_an_archive_that_is_cut_off(tmp_path: Path) -> None:
    """Is read up to there."""
    whole = write_csv(tmp_path / "whole.csv", rows()).read_bytes()
    path = tmp_path / "log.csv.gz"
    packed = gzip.compress(whole)
    path.write_bytes(packed[: len(packed) // 2])

    records, troubles = read(csv_rows, path)

    assert 50 < len(records) < 300
    assert any("cut off" in line for line in troubles)


def test_an_archived_state_that_is_cut_off(tmp_path: Path) -> None:
    """Is read up to there, though it is read in large pieces; the damage is told once."""
    packed = gzip.compress(write_trainer_state(tmp_path / "whole", rows()).read_bytes())
    path = tmp_path / "trainer_state.json"
    path.write_bytes(packed[: len(packed) // 2])

    records, troubles = read(trainer_state, path)

    assert 50 < len(records) < 300
    assert len(troubles) == 2
    assert troubles[0].startswith("1 archive that is damaged or cut off (")
    assert troubles[1].startswith("1 file that is cut off or damaged")


@pytest.mark.parametrize(
    ("line", "record"),
    [
        ('{"train": {"loss": 1.2}, "step": 3}', {"train.loss": 1.2, "step": 3}),
        ('{"a": {"b": {"c": {"d": {}}}}}', {"a.b.c.d": {}}),
        ('{"a": {"b": {"c": {"d": {"e": 1}}}}}', {"a.b.c.d": {"e": 1}}),
        ('{"a": {}, "note": "{", "list": [{"b": 1}]}', {"note": "{", "list": [{"b": 1}]}),
    ],
)
def test_nested_values(tmp_path: Path, line: str, record: dict[str, object]) -> None:
    """Their names are joined by dots, so deep as anybody means it."""
    path = tmp_path / "log.jsonl"
    path.write_text(line + "\n")

    assert read(json_lines, path) == ([record], [])


@pytest.mark.parametrize("chunk", [64, 1000, 1 << 20])
def test_trainer_state_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    """Wherever a piece ends, the same records come out, NaN included."""
    monkeypatch.setattr(text_logs, "_CHUNK", chunk)
    path = write_trainer_state(tmp_path / "trainer_state.json", rows())

    records, troubles = read(trainer_state, path)

    assert json.dumps(records) == json.dumps(rows(), sort_keys=True)
    assert troubles == []


def test_what_a_trainer_says_of_the_whole_run_is_no_step(tmp_path: Path) -> None:
    """Its `train_loss` is an average; the loss of a step is called `loss`."""
    whole = {"step": 2, "train_loss": 3.0, "train_runtime": 1.0}
    counted = {"step": 2, "loss": 3.0, "train_runtime": 1.0}
    path = write_trainer_state(tmp_path / "trainer_state.json", [counted, whole])

    assert read(trainer_state, path)[0] == [counted]


def test_trainer_state_that_is_cut_off(tmp_path: Path) -> None:
    """Is read up to there, and said to be."""
    path = write_trainer_state(tmp_path / "trainer_state.json", rows())
    path.write_bytes(path.read_bytes()[:20_000])

    records, troubles = read(trainer_state, path)

    assert 100 < len(records) < 300
    assert troubles == ["1 file that is cut off or damaged, and was read up to there"]


def test_a_long_line_is_not_read_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is bounded also where lines are not."""
    monkeypatch.setattr("training_exporter.replay.stream.MAX_LINE", 100)
    path = write_json_lines(tmp_path / "log.jsonl", [{"step": 1, "text": "x" * 500}, {"step": 2}])

    records, troubles = read(json_lines, path)

    assert records == [{"step": 2}]
    assert "no whole JSON" in troubles[0]
