# SPDX-License-Identifier: Apache-2.0
"""A small file that outlives a process which is killed, and tells the next one where it was."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Final
from weakref import WeakSet

from training_exporter import catalog
from training_exporter._version import __version__
from training_exporter.lifecycle.blackbox_file import BoxFile
from training_exporter.lifecycle.blackbox_format import STATE_EVERY
from training_exporter.lifecycle.blackbox_reader import (
    Box,
    BoxError,
    UnfinishedBoxError,
    read_box,
)
from training_exporter.lifecycle.processes import this_process
from training_exporter.monitor import TrainingMonitor
from training_exporter.signals import StepSignals
from training_exporter.status import RunStatus
from training_exporter.values import safe_file_name

logger = logging.getLogger("training_exporter")

SUFFIX: Final = ".blackbox"
PREVIOUS_SUFFIX: Final = ".previous"
_NOTHING_DONE: Final = frozenset({catalog.STARTING, catalog.STOPPED, catalog.COMPLETED})
"""States in which a process that has no box yet has not trained, and needs none. A crash at the
start is worth one."""


class BlackBox:
    """Writes the black box of one run and rank, and reads that of the process before this one.

    What a page shows is in the box before it is on the page: a counter that went on from a little
    less than Prometheus had seen would look like one that began anew, and be counted twice. So the
    caller notes a step and a status before it publishes them. The file is made when the training
    begins, so that a process which only looks leaves the box before it alone.

    Args:
        directory: where the boxes of all runs and ranks lie.
        monitor: knows what was counted.
        clock: returns Unix time in seconds.
        count_error: called for each trouble with the disk.
    """

    _all: ClassVar[WeakSet[BlackBox]] = WeakSet()

    def __init__(
        self,
        directory: Path,
        monitor: TrainingMonitor,
        clock: Callable[[], float],
        count_error: Callable[[], object],
    ) -> None:
        self._directory = directory.expanduser().absolute()  # a script may go elsewhere
        self._monitor = monitor
        self._clock = clock
        self._count_error = count_error
        self._file: BoxFile | None = None
        self._refused = False
        self._recalled: tuple[str, int] | None = None
        self._seen = RunStatus("", 0)
        BlackBox._all.add(self)

    @property
    def is_open(self) -> bool:
        """Whether something is being written."""
        return self._file is not None

    def is_of(self, run: str, rank: int) -> bool:
        """Whether `recall` was called for this run and rank last."""
        return self._recalled == (run, rank)

    def recall(self, run: str, rank: int) -> Box | None:
        """The box of the process before this one; None when there is none. What is written from now
        on is of this run and rank."""
        self.close()
        self._recalled = (run, rank)
        path = self._path(run, rank)
        try:
            return _newest(path)
        except (BoxError, OSError) as error:
            self._count_error()
            logger.warning("counting begins anew, since the black box cannot be read: %s", error)
            return None

    def note_step(self, signals: StepSignals, status: RunStatus) -> None:
        """Note a step that is about to be judged.

        Raises:
            struct.error: a field is not a number.
        """
        file = self._file or self._opened(status)
        if file is not None:
            file.add_step(signals)
            if file.steps % STATE_EVERY == 0:
                self._write_state(file, self._seen, judged=file.steps - 1)

    def note_counts(self) -> None:
        """Note what is counted that the steps themselves do not say: that an anomaly began."""
        if self._file is not None:
            self._write_state(self._file, self._seen, judged=self._file.steps)

    def note_status(self, status: RunStatus) -> None:
        """Note a status that is about to be seen."""
        file = self._file
        if file is None:
            if status.state not in _NOTHING_DONE:
                self._opened(status)
            return
        before, self._seen = self._seen, status
        if _summed_anew(before, status):
            file.write_sums(_sums(status))
        if _stated_anew(before, status):
            self._write_state(file, status, judged=file.steps)

    def close(self) -> None:
        """Write no more; the file stays. The next step or state begins a new one."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _opened(self, status: RunStatus) -> BoxFile | None:
        """A new file, unless the disk has refused one before: then the training goes on without."""
        if self._refused:
            return None
        try:
            self._file = file = self._new_file(status)
        except (OSError, ValueError) as error:
            self._refused = True
            self._count_error()
            logger.warning(
                "training goes on without its black box in %s: %s", self._directory, error
            )
            return None
        self._seen = status
        file.write_sums(_sums(status))
        self._write_state(file, status, judged=0)
        return file

    def _new_file(self, status: RunStatus) -> BoxFile:
        path = self._path(status.run, status.rank)
        self._directory.mkdir(parents=True, exist_ok=True)
        head = {
            "run": status.run,
            "rank": status.rank,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "process": str(this_process()),
            "started": self._clock(),
            "version": __version__,
            "sums": _sum_names(status),
        }
        _set_aside(path)
        return BoxFile(path, head)

    def _write_state(self, file: BoxFile, status: RunStatus, *, judged: int) -> None:
        """Replace the state; of the steps noted, the first `judged` are among what was counted."""
        file.write_state(
            {
                "time": self._clock(),
                "state": status.state,
                "failure": status.failure,
                "info": dict(status.info),
                "steps": judged,
                "recent": self._monitor.recent,
                "counts": self._monitor.counts(),
            }
        )

    def _path(self, run: str, rank: int) -> Path:
        return self._directory / f"{safe_file_name(run)}-r{rank}{SUFFIX}"

    def _leave_to_parent(self) -> None:
        """In a forked child: what the parent writes is not the child's to write."""
        if self._file is not None:
            self._refused = True
            self.close()


def _sum_names(status: RunStatus) -> list[str]:
    return [
        *[f"pauses:{name}" for name in status.pauses],
        *[f"compute:{name}" for name in status.compute],
        "reports",
        "restarts",
    ]


def _sums(status: RunStatus) -> tuple[float, ...]:
    """What is counted outside of the steps, in the order of `_sum_names`."""
    return (*status.pauses.values(), *status.compute.values(), status.reports, status.restarts)


def _stated_anew(before: RunStatus, status: RunStatus) -> bool:
    return (
        before.state != status.state
        or before.failure != status.failure
        or before.info != status.info
    )


def _summed_anew(before: RunStatus, status: RunStatus) -> bool:
    # By identity, since a status is replaced several times a step, mostly for other reasons.
    return (
        before.pauses is not status.pauses
        or before.compute is not status.compute
        or before.reports != status.reports
        or before.restarts != status.restarts
    )


def _newest(path: Path) -> Box | None:
    """The box at a path; that before it where a process was killed just as it began its own."""
    if path.exists() and not _is_unfinished(path):
        return read_box(path)
    aside = _aside(path)
    return read_box(aside) if aside.exists() else None


def _set_aside(path: Path) -> None:
    """Make room at a path. The box there keeps its content and its writer, if that still lives, and
    is to be found under another name until the next one."""
    with suppress(FileNotFoundError):
        if _is_unfinished(path):
            path.unlink()
        else:
            path.replace(_aside(path))


def _is_unfinished(path: Path) -> bool:
    try:
        read_box(path)
    except BoxError as error:
        return isinstance(error, UnfinishedBoxError)
    return False


def _aside(path: Path) -> Path:
    return path.with_name(f"{path.name}{PREVIOUS_SUFFIX}")


def _leave_all_to_parent() -> None:
    for box in list(BlackBox._all):
        box._leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_all_to_parent)
