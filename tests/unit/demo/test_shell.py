# SPDX-License-Identifier: Apache-2.0
"""What a person at a shell can use afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.demo.programs import installed
from training_exporter.demo.shell import folder_for_reports, program


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))


def runs(path: Path | str, monkeypatch: pytest.MonkeyPatch) -> str:
    """What to type for a program that was started by a path."""
    monkeypatch.setattr("sys.argv", [str(path), "demo"])
    return program()


def test_a_program_that_the_shell_finds_has_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where PATH has a link to it, as pipx makes one."""
    own = installed(tmp_path / "own")
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / own.name).symlink_to(own)

    assert runs(own, monkeypatch) == "training-exporter"


@pytest.mark.parametrize("another", [True, False])
def test_a_program_that_the_shell_does_not_find_has_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, another: bool
) -> None:
    """From the working directory if it is below; another program of that name is no help."""
    if another:
        installed(tmp_path / "path")
    below = installed(tmp_path / "en v" / "bin")
    beside = installed(tmp_path)

    assert runs(below, monkeypatch) == "'en v/bin/training-exporter'"
    assert runs("en v/bin/training-exporter", monkeypatch) == "'en v/bin/training-exporter'"
    assert runs(beside, monkeypatch) == str(beside)


def test_who_runs_the_demo_from_a_program_is_told_the_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Their own program has no commands of ours."""
    assert runs("train.py", monkeypatch) == "training-exporter"


def test_a_folder_stays_only_with_a_report_in_it() -> None:
    """Nobody wants to clear up empty ones."""
    with folder_for_reports() as empty:
        assert empty.is_dir()
    with folder_for_reports() as full:
        (full / "report.json").touch()

    assert not empty.exists()
    assert (full / "report.json").exists()
