# SPDX-License-Identifier: Apache-2.0
"""From what was found on a NaN to a file, a line in the log, and a note for page and metrics."""

from __future__ import annotations

import logging
from pathlib import Path
from threading import Thread
from typing import Final, Protocol

from training_exporter.boundary import StepBoundary
from training_exporter.catalog import STEP_ERROR
from training_exporter.forensics.cause import likely_causes
from training_exporter.forensics.report import About, Report
from training_exporter.forensics.store import ReportStore
from training_exporter.forensics.text import summary
from training_exporter.forensics.watch import versions_in_use
from training_exporter.status import ReportNote, RunStatus

logger = logging.getLogger("training_exporter")

PATIENCE_SECONDS: Final = 2.0
"""How long the training waits for the disk, which takes some milliseconds unless it hangs."""

_HARMLESS: Final = "loss_scale_search"


class ReportTaker(Protocol):
    """What reports need of the exporter."""

    boundary: StepBoundary

    @property
    def status(self) -> RunStatus: ...

    def observe_report(self, note: ReportNote, /) -> object: ...


class _Writing(Thread):
    """A report on its way to the disk. A daemon, so that a disk that hangs keeps no process."""

    def __init__(self, store: ReportStore, report: Report) -> None:
        super().__init__(name="training-exporter report", daemon=True)
        self.report = report
        self.path: Path | None = None
        self.error: Exception | None = None
        self._store = store

    def run(self) -> None:
        try:
            self.path = self._store.save(self.report)
        except Exception as error:  # nobody is above it in its thread; the training's reports it
            self.error = error


class NanReports:
    """Writes reports and makes them known. All methods belong to the training thread.

    A file is written on a thread of its own. The training waits for it a little, so that on a disk
    that works the log names the file at once; on one that hangs it goes on, and a later call finds
    out how it ended. Whatever goes wrong is counted, and the log tells the cause without a file.

    Args:
        taker: the exporter.
        directory: where the reports go; made with the first one.
        patience: seconds to wait for the disk.
    """

    def __init__(
        self, taker: ReportTaker, directory: Path, *, patience: float = PATIENCE_SECONDS
    ) -> None:
        self.directory = directory
        self._taker = taker
        self._patience = patience
        self._writing: list[_Writing] = []

    def about(self) -> About:
        """Which run a report is on."""
        status = self._taker.status
        info = status.info
        return About(
            status.run, status.rank, info.get("framework"), info.get("model"), versions_in_use()
        )

    def write(self, report: Report) -> None:
        """Write a report, and make it known once it is written or could not be."""
        writing = _Writing(ReportStore(self.directory), report)
        self._writing.append(writing)
        try:
            writing.start()
            writing.join(self._patience)
        except RuntimeError as error:  # no thread is to be had
            writing.error = error
        self.look()

    def look(self) -> None:
        """Make known what was written meanwhile. Never waits."""
        if self._writing:
            done = [one for one in self._writing if not one.is_alive()]
            self._writing = [one for one in self._writing if one not in done]
            for one in done:
                self._announce(one)

    def finish(self) -> None:
        """Wait a last time, and make known without a file what is not written even then."""
        writing, self._writing = self._writing, []
        for one in writing:
            one.join(self._patience)
            self._announce(one)

    def _announce(self, written: _Writing) -> None:
        report, path = written.report, written.path
        if isinstance(written.error, OSError):
            self._taker.boundary.health.count_error(STEP_ERROR)
            logger.warning("the report on a NaN could not be written: %s", written.error)
        elif written.error is not None:
            self._taker.boundary.report(STEP_ERROR, written.error)
        alarming = likely_causes(report)[0].name != _HARMLESS
        known_path = None if path is None else str(path)
        self._taker.observe_report(ReportNote(report.source, summary(report), known_path, alarming))
        level = logging.WARNING if alarming else logging.INFO
        logger.log(level, "%s", summary(report, path))
