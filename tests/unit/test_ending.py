# SPDX-License-Identifier: Apache-2.0
"""The summary is told when a run ends, whoever ends it, and once."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from training_exporter import TrainingExporter
from training_exporter.lifecycle.summary_file import FILE_NAME
from training_exporter.status import MOST_OF_REASON, RunStatus


def ended(logs: pytest.LogCaptureFixture) -> list[str]:
    """The first lines of the summaries in the log."""
    lines = [record.getMessage().splitlines()[0] for record in logs.records]
    return [line for line in lines if line.startswith("run tiny ")]


def exporter(folder: Path | None = None) -> TrainingExporter:
    """One that has a folder for its summary."""
    watched = TrainingExporter(serve=False, run="tiny")
    watched.ending.folder = folder
    return watched


def test_a_completed_run(tmp_path: Path, logs: pytest.LogCaptureFixture) -> None:
    """In the log and in the file."""
    with exporter(tmp_path) as watched:
        watched.step(loss=1.0)

    assert ended(logs) == ["run tiny completed at step 1"]
    assert json.loads((tmp_path / FILE_NAME).read_text())["state"] == "completed"


def test_a_crash_says_why(tmp_path: Path, logs: pytest.LogCaptureFixture) -> None:
    """To log, file and page; a run that then goes on and completes has no reason any more."""
    watched = exporter(tmp_path)
    watched.step(loss=1.0)
    watched.finish(OSError("the disk\nis full"))

    assert re.search(r"\n  error +the disk\n", logs.text)
    assert json.loads((tmp_path / FILE_NAME).read_text())["reason"] == "the disk"
    assert ("error", "the disk") in watched.status.summary

    watched.step(loss=1.0)
    watched.finish()
    assert json.loads((tmp_path / FILE_NAME).read_text())["reason"] is None
    assert watched.status.reason is None


def test_a_crashed_run(tmp_path: Path, logs: pytest.LogCaptureFixture) -> None:
    """It needs a summary more than others, even before its first step."""
    with pytest.raises(ZeroDivisionError), exporter(tmp_path):
        raise ZeroDivisionError

    assert ended(logs) == ["run tiny crashed by ZeroDivisionError before its first step"]
    assert json.loads((tmp_path / FILE_NAME).read_text())["failure"] == "ZeroDivisionError"


def test_an_end_is_told_once(logs: pytest.LogCaptureFixture) -> None:
    """A Trainer ends its run, then the block around it; another end is another summary."""
    with exporter() as watched:
        watched.step(loss=1.0)
        watched.finish()
    watched.step(loss=1.0)
    watched.finish()
    watched.finish(ValueError())

    assert ended(logs) == [
        "run tiny completed at step 1",
        "run tiny completed at step 2",
        "run tiny crashed by ValueError at step 2",
    ]


def test_nothing_is_told_of_a_run_that_never_began(logs: pytest.LogCaptureFixture) -> None:
    """An exporter that was made and not used has nothing to say."""
    with exporter():
        pass

    assert ended(logs) == []


def test_other_ranks_are_silent(tmp_path: Path, logs: pytest.LogCaptureFixture) -> None:
    """Eight processes would write one file, and eight blocks."""
    with TrainingExporter(serve=False, run="tiny", rank=1) as watched:
        watched.ending.folder = tmp_path
        watched.step(loss=1.0)

    assert ended(logs) == []
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written(tmp_path: Path, logs: pytest.LogCaptureFixture) -> None:
    """Is one line and one count, and the log has its block."""
    (tmp_path / FILE_NAME).mkdir()
    with exporter(tmp_path) as watched:
        watched.step(loss=1.0)

    assert ended(logs) == ["run tiny completed at step 1"]
    assert "could not be written" in logs.text
    assert watched.health.errors["lifecycle"] == 1


def test_the_folder_of_the_setting_goes_before_the_trainers(tmp_path: Path) -> None:
    """And a loop of one's own has a summary by it."""
    wanted = tmp_path / "wanted"
    with TrainingExporter(serve=False, summary_dir=str(wanted)) as watched:
        watched.ending.write_below(str(tmp_path / "output"))
        watched.step(loss=1.0)

    assert [path.name for path in wanted.iterdir()] == ["training_exporter_summary.json"]
    assert not (tmp_path / "output").exists()


def test_the_page_is_given_what_was_told() -> None:
    """Its own would differ by what our work took after the end, and again and again."""
    with exporter() as watched:
        watched.step(loss=1.0)
    first = watched.status.summary
    watched.step(loss=2.0)
    watched.finish()

    assert dict(first)["steps"] == "1"
    assert dict(watched.status.summary)["steps"] == "2"


class MuteError(Exception):
    """Its text cannot be had."""

    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("CUDA error\nCompile with TORCH_USE_CUDA_DSA"), "CUDA error"),
        (ValueError("\n  at\tonce \r\nmore"), "at once"),
        (ValueError("x" * 5000), "x" * MOST_OF_REASON),
        (ValueError("\x1b[31mred\ud800"), "?[31mred?"),
        (KeyError("loss"), "'loss'"),
        (ValueError(), None),
        (ValueError(" \n "), None),
    ],
)
def test_what_an_exception_says(error: Exception, reason: str | None) -> None:
    """Its first line, short enough for a chat, without what would colour a terminal."""
    status = RunStatus("tiny", 0, "running").crashed_by(error)

    assert status == RunStatus("tiny", 0, "crashed", failure=type(error).__name__, reason=reason)


def test_an_exception_that_cannot_speak() -> None:
    """Is no reason for another one."""
    status = RunStatus("tiny", 0, "running").crashed_by(MuteError())

    assert status.failure == "MuteError"
    assert "str() failed" in (status.reason or "") or "unprintable" in (status.reason or "")
