# SPDX-License-Identifier: Apache-2.0
"""Reports on their way to a disk that may be slow, full or not there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest

from tests.unit.forensics.events import report
from training_exporter.boundary import StepBoundary
from training_exporter.forensics.report import Report
from training_exporter.forensics.store import ReportStore, read_report
from training_exporter.integrations.nan_reports import NanReports
from training_exporter.status import ExporterHealth, ReportNote, RunStatus


class Taker:
    """Keeps the notes."""

    def __init__(self) -> None:
        self.health = ExporterHealth()
        self.boundary = StepBoundary(self.health)
        self.status = RunStatus("a run", 3, info={"framework": "mine", "model": "Net"})
        self.notes: list[ReportNote] = []

    def observe_report(self, note: ReportNote) -> None:
        self.notes.append(note)


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[Event]:
    """A disk that answers once the event is set."""
    answer, save = Event(), ReportStore.save

    def slowly(self: ReportStore, of: Report) -> Path:
        assert answer.wait(20)
        return save(self, of)

    monkeypatch.setattr(ReportStore, "save", slowly)
    yield answer
    answer.set()


def test_a_report_is_known_at_once(tmp_path: Path, logs: pytest.LogCaptureFixture) -> None:
    """In a file, a line of the log that names it, and a note."""
    taker = Taker()

    NanReports(taker, tmp_path).write(report())

    [note] = taker.notes
    assert note.source == "loss"
    assert note.alarming
    assert note.path is not None
    assert read_report(Path(note.path)) == report()
    assert [record.levelname for record in logs.records] == ["WARNING"]
    assert note.path in logs.text


def test_an_overflow_of_mixed_precision_is_no_alarm(
    tmp_path: Path, logs: pytest.LogCaptureFixture
) -> None:
    """It is how a loss scale is found."""
    taker = Taker()

    NanReports(taker, tmp_path).write(report(loss=2.0, loss_scale=65536.0))

    assert [note.alarming for note in taker.notes] == [False]
    assert [record.levelname for record in logs.records] == ["INFO"]


def test_a_disk_that_hangs_is_not_waited_for(tmp_path: Path, hanging: Event) -> None:
    """The training goes on, and a later step finds the report."""
    taker = Taker()
    reports = NanReports(taker, tmp_path, patience=0.01)

    reports.write(report())
    reports.look()
    assert taker.notes == []

    hanging.set()
    reports._writing[0].join(20)
    reports.look()
    reports.look()
    assert [note.path is not None for note in taker.notes] == [True]


def test_a_disk_that_hangs_to_the_end_keeps_nobody(
    tmp_path: Path, hanging: Event, logs: pytest.LogCaptureFixture
) -> None:
    """What was found is told all the same, without a file."""
    taker = Taker()
    reports = NanReports(taker, tmp_path, patience=0.01)
    reports.write(report())
    assert reports._writing[0].daemon

    reports.finish()
    reports.finish()

    assert [note.path for note in taker.notes] == [None]
    assert "likely cause" in logs.text


def test_a_full_disk_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And does not stop the next report."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    taker = Taker()
    reports = NanReports(taker, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("training_exporter.forensics.store._write", full)
        reports.write(report())
    reports.write(report())

    assert taker.health.errors["step"] == 1
    assert [note.path is None for note in taker.notes] == [True, False]


def test_whatever_goes_wrong_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And logged with its place; the cause is told without a file."""

    def planted(*_: object) -> None:
        raise RecursionError("planted")

    monkeypatch.setattr(ReportStore, "save", planted)
    taker = Taker()
    NanReports(taker, tmp_path).write(report())

    assert taker.health.errors["step"] == 1
    assert [note.path for note in taker.notes] == [None]


def test_without_a_thread_the_cause_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a process may have no more of them. Nothing is left to wait for at the end."""

    def planted(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("training_exporter.integrations.nan_reports._Writing.start", planted)
    taker = Taker()
    reports = NanReports(taker, tmp_path)
    reports.write(report())
    reports.finish()

    assert taker.health.errors["step"] == 1
    assert [note.path for note in taker.notes] == [None]


def test_it_says_which_run_it_was(tmp_path: Path) -> None:
    """As the run calls itself."""
    about = NanReports(Taker(), tmp_path).about()

    assert (about.run, about.rank, about.framework, about.model) == ("a run", 3, "mine", "Net")
    assert "python" in about.versions
