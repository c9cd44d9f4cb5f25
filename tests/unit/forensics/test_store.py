# SPDX-License-Identifier: Apache-2.0
"""A directory of reports that never fills the disk."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.forensics.events import ABOUT, report
from training_exporter.forensics import store
from training_exporter.forensics.jsonform import ReportError, to_json
from training_exporter.forensics.report import Report
from training_exporter.forensics.store import (
    ReportStore,
    default_directory,
    file_stem,
    read_report,
)


def at(step: int, run: str = "my-run", rank: int = 3) -> Report:
    return replace(report(), step=step, about=ABOUT._replace(run=run, rank=rank))


def save(reports: ReportStore, step: int, run: str = "my-run", rank: int = 3) -> Path:
    """Save, as if `step` were the time as well: one write may follow the next within a tick."""
    path = reports.save(at(step, run, rank))
    os.utime(path, (step, step))
    return path


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_report_is_a_file_named_after_it(tmp_path: Path) -> None:
    """Run, rank and step; the directory is made, and the file is read back."""
    path = ReportStore(tmp_path / "a" / "b").save(at(7))
    assert path == tmp_path / "a" / "b" / "non-finite-my-run-r3-s00000007.json"
    assert repr(read_report(path)) == repr(at(7))
    assert names(path.parent) == [path.name]


def test_no_directory_before_the_first_report(tmp_path: Path) -> None:
    """A healthy run leaves nothing behind."""
    ReportStore(tmp_path / "reports")
    assert names(tmp_path) == []


def test_the_oldest_go_when_there_are_too_many(tmp_path: Path) -> None:
    """By when they were written, and never the new one."""
    reports = ReportStore(tmp_path, most_files=3)
    for step in (50, 10, 40, 20, 30):
        path = reports.save(at(step))
        os.utime(path, (1000 + step, 1000 + step))
    steps = [int(name[-13:-5]) for name in names(tmp_path)]
    assert steps == [30, 40, 50]


def test_no_rank_pushes_out_the_first_report_of_another(tmp_path: Path) -> None:
    """They share the folder: what goes is of other runs, of the rank itself, and later ones."""
    reports = ReportStore(tmp_path, most_files=4)
    first, other = save(reports, 1, rank=0), save(reports, 2, run="other-r0-s1", rank=0)
    second, later = save(reports, 3, rank=1), save(reports, 4, rank=1)
    third = save(reports, 5, rank=2)
    assert names(tmp_path) == sorted(path.name for path in (first, second, later, third))
    fourth = save(reports, 6, rank=3)
    assert names(tmp_path) == sorted(path.name for path in (first, second, third, fourth))
    again = save(reports, 7, rank=3)
    assert names(tmp_path) == sorted(path.name for path in (first, second, third, again))
    assert not other.exists()


def test_a_folder_full_of_first_reports_takes_no_more(tmp_path: Path) -> None:
    """The disk is not filled, nothing is removed, and nothing half written stays behind."""
    reports = ReportStore(tmp_path, most_files=2)
    kept = [save(reports, 5, rank=rank) for rank in range(2)]
    with pytest.raises(ValueError, match="full of first reports of other ranks"):
        reports.save(at(5, rank=2))
    assert names(tmp_path) == sorted(path.name for path in kept)
    replaced = save(reports, 6, run="another")
    assert sorted([kept[1].name, replaced.name]) == names(tmp_path)


def test_the_oldest_go_when_they_are_too_large(tmp_path: Path) -> None:
    """The bytes of all together stay below the bound."""
    size = len(to_json(at(1)))
    reports = ReportStore(tmp_path, most_bytes=3 * size + 10)
    for step in range(1, 9):
        save(reports, step)
    assert [int(name[-13:-5]) for name in names(tmp_path)] == [6, 7, 8]


def test_what_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    """Foreign files, links and folders, even of our names, are neither counted nor removed."""
    (tmp_path / "notes.json").write_text("mine")
    (tmp_path / "non-finite-thoughts.json").write_text("mine")
    (tmp_path / "non-finite-a-r0-s00000001.json").symlink_to(tmp_path / "notes.json")
    (tmp_path / "non-finite-a-r0-s00000002.json").mkdir()
    before = names(tmp_path)
    reports = ReportStore(tmp_path, most_files=1)
    for step in (1, 2, 3):
        save(reports, step)

    assert names(tmp_path) == sorted([*before, "non-finite-my-run-r3-s00000003.json"])


def test_a_second_report_on_a_step_does_not_replace_the_first(tmp_path: Path) -> None:
    """A run that is resumed and breaks at the same place has two, and both count."""
    reports = ReportStore(tmp_path, most_files=2)
    first, second = save(reports, 7), save(reports, 7)
    assert second.name == "non-finite-my-run-r3-s00000007-2.json"
    os.utime(second, (8, 8))
    third = reports.save(at(9))
    assert names(tmp_path) == sorted([second.name, third.name])
    assert not first.exists()


@pytest.mark.parametrize(
    "run", ["../../etc/passwd", "a/b c:*?", "läuft", ".", "", "x" * 300, "a\nb"]
)
def test_a_run_may_have_any_name(tmp_path: Path, run: str) -> None:
    """The file stays in the directory, and its name is one that every file system takes."""
    reports = ReportStore(tmp_path, most_files=1)
    path = reports.save(at(7, run))
    assert path.parent == tmp_path
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,120}", path.name)
    assert read_report(path).about.run == run
    os.utime(path, (1, 1))
    later = reports.save(at(8, run))
    assert names(tmp_path) == [later.name]  # the first was known as ours, and removed


def test_runs_that_look_alike_have_files_of_their_own() -> None:
    """a/b and a_b are two runs."""
    stems = {file_stem(run, 0, 1) for run in ("a/b", "a_b", "a:b", "x" * 81, "x" * 82)}
    assert len(stems) == 5


def test_a_failed_write_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full: it raises, no half file stays, and the older reports are still there."""

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    reports = ReportStore(tmp_path, most_files=1)
    kept = save(reports, 1)
    monkeypatch.setattr(store.os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        reports.save(at(2))
    assert names(tmp_path) == [kept.name]


def test_a_directory_that_cannot_be_made_raises(tmp_path: Path) -> None:
    """A file stands where it should be; the caller counts it."""
    (tmp_path / "reports").write_text("")
    with pytest.raises(OSError, match="reports"):
        ReportStore(tmp_path / "reports").save(at(1))


def test_what_killed_writers_left_is_removed(tmp_path: Path) -> None:
    """After an hour: before, another process may be writing it."""
    old = tmp_path / ".non-finite-a-r0-s00000001.json.12.tmp"
    new = tmp_path / ".non-finite-a-r0-s00000002.json.13.tmp"
    foreign = tmp_path / ".other.json.12.tmp"
    for path in (old, new, foreign):
        path.write_text("{")
    for path in (old, foreign):
        os.utime(path, (1, 1))
    ReportStore(tmp_path).save(at(1))
    assert names(tmp_path) == sorted(
        [new.name, foreign.name, "non-finite-my-run-r3-s00000001.json"]
    )


def test_bounds_must_allow_something(tmp_path: Path) -> None:
    """At once, not at the first NaN; and a report that can never fit is refused."""
    with pytest.raises(ValueError, match="at least one file and one byte"):
        ReportStore(tmp_path, most_files=0)
    with pytest.raises(ValueError, match="50 are allowed"):
        ReportStore(tmp_path / "none", most_bytes=50).save(at(1))
    assert names(tmp_path) == []


def test_the_default_is_beside_what_the_trainer_writes() -> None:
    """Without an output directory the working directory."""
    assert default_directory("out") == Path("out/_training-exporter-reports")
    assert default_directory() == default_directory("") == Path("_training-exporter-reports")


def test_what_cannot_be_read_is_one_line_with_the_files_name(tmp_path: Path) -> None:
    """No file, a folder, no text, no report, and one too large to be a report."""
    binary, empty, huge = tmp_path / "binary", tmp_path / "empty", tmp_path / "huge"
    binary.write_bytes(b"\xff\xfe\x00")
    empty.write_text("")
    with huge.open("wb") as file:
        file.truncate(store.READABLE_BYTES + 1)
    for path, why in {
        tmp_path / "absent": "No such file or directory",
        tmp_path: "Is a directory",
        binary: "no UTF-8 text",
        empty: "this is not JSON",
        huge: "too large",
    }.items():
        with pytest.raises(ReportError, match=why) as caught:
            read_report(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)
