# SPDX-License-Identifier: Apache-2.0
"""Where the files come from, and what becomes of those that are there."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.conftest import ROOT
from training_exporter import cli
from training_exporter.assets import FORMATS, AssetsError, shipped_files, write_files

FILES = {"a.yml": "a: 1\n", "below/b.json": "{}\n"}


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.app, ["assets", *map(str, arguments)], env={"COLUMNS": "200"})


def test_the_files_are_those_of_the_repository() -> None:
    """Rules, routes, templates, dashboards, provisioning and Prometheus' configuration, word for
    word."""
    files = shipped_files((ROOT,))

    assert all((ROOT / path).read_text() == text for path, text in files.items())
    for folder in ("alertmanager/rules", "alertmanager/templates", "grafana/dashboards"):
        there = [f"{folder}/{p.name}" for p in (ROOT / folder).iterdir() if p.is_file()]
        assert set(there) <= set(files)
    assert {"alertmanager/alertmanager.yml", "prometheus/prometheus.yml"} <= set(files)


def test_a_copy_of_the_wheel_comes_before_the_checkout(tmp_path: Path) -> None:
    """What is installed is what is written."""
    write_files(tmp_path, {**shipped_files((ROOT,)), "alertmanager/rules/alerts.yml": "mine"})

    assert shipped_files((tmp_path, ROOT))["alertmanager/rules/alerts.yml"] == "mine"


def test_an_installation_without_the_files_says_so(tmp_path: Path) -> None:
    """None at all, or none of a kind."""
    with pytest.raises(AssetsError, match="has no assets; install the wheel"):
        shipped_files((tmp_path,))

    (tmp_path / "alertmanager" / "rules").mkdir(parents=True)
    with pytest.raises(AssetsError, match=r"lacks alertmanager/alertmanager.yml, .*dashboards"):
        shipped_files((tmp_path,))


def test_what_is_there_and_different_is_kept(tmp_path: Path) -> None:
    """Nothing is written then, not even what would be new; --force is named, and overwrites."""
    mine = tmp_path / "a.yml"
    mine.write_text("a: 2\n")

    with pytest.raises(AssetsError, match=r"a\.yml would be overwritten.*--force"):
        write_files(tmp_path, FILES)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [mine]
    assert mine.read_text() == "a: 2\n"

    write_files(tmp_path, FILES, overwrite=True)
    assert mine.read_text() == FILES["a.yml"]
    assert (tmp_path / "below" / "b.json").read_text() == FILES["below/b.json"]


def test_what_is_there_and_the_same_is_no_obstacle(tmp_path: Path) -> None:
    """So the command may be repeated."""
    assert write_files(tmp_path, FILES) == write_files(tmp_path, FILES)


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    """Is told with its name."""
    (tmp_path / "file").touch()

    with pytest.raises(AssetsError, match=r"cannot write to .*file"):
        write_files(tmp_path / "file", FILES)


@pytest.mark.parametrize("form", FORMATS)
def test_the_command_lists_what_it_wrote(tmp_path: Path, form: str) -> None:
    """Every path on a line of its own."""
    result = run(tmp_path / "out", "--format", form)

    written = {str(path) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert result.exit_code == 0
    assert set(result.stdout.splitlines()) == written
    assert len(written) == len(FORMATS[form](shipped_files()))


def test_files_are_what_is_written_unless_asked_otherwise(tmp_path: Path) -> None:
    """In the folders of the repository, so that their paths to each other hold."""
    run(tmp_path)

    assert (tmp_path / "prometheus" / "prometheus.yml").is_file()
    assert not (tmp_path / "examples").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "helm"], "--format is one of files, kubernetes, not helm"),
        ([], "prometheus.yml would be overwritten. Nothing was written; --force overwrites."),
    ],
)
def test_what_the_command_refuses(tmp_path: Path, arguments: list[str], message: str) -> None:
    """Exit code 2, one line, and what is there stays."""
    mine = tmp_path / "prometheus" / "prometheus.yml"
    mine.parent.mkdir()
    mine.write_text("mine")

    result = run(tmp_path, *arguments)

    assert result.exit_code == 2
    assert message in result.stderr
    assert mine.read_text() == "mine"
