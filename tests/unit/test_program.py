# SPDX-License-Identifier: Apache-2.0
"""What to type for the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.programs import installed
from training_exporter.program import program


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


@pytest.mark.parametrize("beside", [True, False])
def test_somebody_s_own_program_has_ours_beside_its_interpreter(
    beside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where an environment is used that was not activated."""
    folder = tmp_path / "env" / "bin"
    if beside:
        installed(folder)
    monkeypatch.setattr("sys.executable", str(folder / "python"))

    expected = "env/bin/training-exporter" if beside else "training-exporter"
    assert runs("train.py", monkeypatch) == expected
