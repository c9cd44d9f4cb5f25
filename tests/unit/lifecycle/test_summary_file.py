# SPDX-License-Identifier: Apache-2.0
"""The summary of a run as a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from training_exporter.lifecycle.summary_file import FILE_NAME, write_summary
from training_exporter.summary.making import RunSummary


def test_a_folder_that_is_not_there_is_made(tmp_path: Path) -> None:
    """A Trainer that never saved has made none."""
    path = write_summary(tmp_path / "a" / "b", RunSummary("tiny", 0, "completed"))

    assert path == tmp_path / "a" / "b" / FILE_NAME
    assert json.loads(path.read_text())["run"] == "tiny"


def test_the_last_summary_stays_alone(tmp_path: Path) -> None:
    """An earlier one is replaced as a whole, and no draft is left."""
    for state in ("completed", "crashed"):
        write_summary(tmp_path, RunSummary("tiny", 0, state))

    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]
    assert json.loads((tmp_path / FILE_NAME).read_text())["state"] == "crashed"


def test_nothing_half_written_stays(tmp_path: Path) -> None:
    """Where the file cannot be put, no draft is left either."""
    (tmp_path / FILE_NAME).mkdir()

    with pytest.raises(OSError, match=FILE_NAME):
        write_summary(tmp_path, RunSummary("tiny", 0, "completed"))

    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]
