# SPDX-License-Identifier: Apache-2.0
"""What is told of a run when it ends: to the log, to a file, to the sinks."""

from __future__ import annotations

import logging
from pathlib import Path

from training_exporter.boundary import StepBoundary
from training_exporter.catalog import CRASHED, LIFECYCLE_ERROR
from training_exporter.lifecycle.summary_file import write_summary
from training_exporter.monitor import TrainingMonitor
from training_exporter.sinks.feed import SinkFeed
from training_exporter.status import StatusBoard
from training_exporter.summary.making import RunSummary, summarise
from training_exporter.summary.text import summary_block, summary_rows

logger = logging.getLogger("training_exporter")


class Ending:
    """Tells the summary of a run once it has ended, whoever concludes it. Never raises.

    A run that took no step is told only if it crashed. Log and file are rank 0's.

    Args:
        board, monitor: of the run.
        boundary: keeps trouble away from the training.
        sinks: who else is told, if anybody.

    Attributes:
        folder: where the file goes; None writes none.
    """

    def __init__(
        self,
        board: StatusBoard,
        monitor: TrainingMonitor,
        boundary: StepBoundary,
        sinks: SinkFeed | None,
    ) -> None:
        self.folder: Path | None = None
        self._board = board
        self._monitor = monitor
        self._boundary = boundary
        self._sinks = sinks
        self._told: tuple[object, ...] | None = None

    def write_below(self, folder: str | None) -> None:
        """Where the run's own output goes, unless that is known; an empty folder is the working
        directory."""
        if self.folder is None and folder is not None:
            self.folder = Path(folder)

    def tell(self) -> None:
        """The run has just come to its end; what was told already is not told again."""
        with self._boundary.at(LIFECYCLE_ERROR):
            status, snapshot = self._board.status, self._monitor.snapshot
            what = (status.run, status.state, status.failure, snapshot.totals.steps)
            if what == self._told or (snapshot.signals is None and status.state != CRASHED):
                return
            self._told = what
            overhead = self._boundary.health.overhead_seconds
            summary = summarise(status, snapshot, self._board.memory, overhead)
            rows = tuple(summary_rows(summary))
            self._board.status = self._board.status._replace(summary=rows)
            if self._sinks is not None:
                self._sinks.finish(summary)
            if status.rank == 0:
                logger.info("%s", summary_block(summary))
                self._write(summary)

    def _write(self, summary: RunSummary) -> None:
        if self.folder is None:
            return
        try:
            write_summary(self.folder, summary)
        except OSError as error:
            self._boundary.health.count_error(LIFECYCLE_ERROR)
            logger.warning("the summary of the run could not be written: %s", error)
