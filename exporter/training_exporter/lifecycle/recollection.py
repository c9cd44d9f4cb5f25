# SPDX-License-Identifier: Apache-2.0
"""What a run tells its black box, and what it takes over from the box before."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import MappingProxyType
from typing import Final

from training_exporter import catalog
from training_exporter.lifecycle.blackbox import BlackBox
from training_exporter.lifecycle.blackbox_reader import Box, last_seen
from training_exporter.monitor import TrainingMonitor
from training_exporter.signals import StepSignals
from training_exporter.snapshot import Totals
from training_exporter.status import RunStatus, StatusBoard

logger = logging.getLogger("training_exporter")

_MEASURED: Final = frozenset({"step_seconds", "data_wait_seconds", "flops"})
_ROUNDING: Final = 1e-12
"""Some hundred additions, each wrong by at most 1.1e-16 of the sum."""


class Recollection:
    """What a run is remembered by: the box it writes, and the box of the process before it.

    The box is told of each status and each anomaly before others can see them.

    Args:
        directory: where the boxes of all runs and ranks lie; None remembers nothing.
        board, monitor: of the run.
        clock: returns Unix time in seconds.
        guarded: makes a block that keeps the trouble of its inside to itself.
        count_error: called for each trouble with the disk.

    Attributes:
        previous: the box of the process before this one, None when there was none.
    """

    def __init__(
        self,
        directory: str | None,
        board: StatusBoard,
        monitor: TrainingMonitor,
        clock: Callable[[], float],
        *,
        guarded: Callable[[], AbstractContextManager[object]],
        count_error: Callable[[], object],
    ) -> None:
        box = None
        if directory is not None:
            box = BlackBox(Path(directory), monitor, clock, count_error)
        self.previous: Box | None = None
        self._box = box
        self._board = board
        self._monitor = monitor
        self._clock = clock
        self._guarded = guarded
        self._without_box = board.status
        if box is not None:
            board.before_status = _guarded_by(guarded, box.note_status)
            monitor.before_anomaly = _guarded_by(guarded, box.note_counts)

    def recall(self, run: str, rank: int) -> None:
        """Count on from where the process before this one of the same run and rank was, once."""
        box, board = self._box, self._board
        if box is None or box.is_of(run, rank):
            return
        with self._guarded():
            # A run may get its name late, when the box of another one by its first name was read.
            if self.previous is not None and not self._has_begun(box):
                self._forget()
            previous = box.recall(run, rank)
            if previous is not None:
                self.previous = previous
                logger.info("%s", last_seen(previous, self._clock()))
                board.status = take_over(previous, board.status, self._monitor)

    def note_step(self, signals: StepSignals) -> None:
        """Note a step that is about to be judged.

        Raises:
            struct.error: a field is not a number.
        """
        box = self._box
        if box is not None:
            if not box.is_open:
                self.recall(self._board.status.run, self._board.status.rank)
            box.note_step(signals, self._board.status)

    def close(self) -> None:
        """Write no more, until a step or a state begins a new box."""
        if self._box is not None:
            self._box.close()

    def _has_begun(self, box: BlackBox) -> bool:
        return box.is_open or self._board.status.running_since is not None

    def _forget(self) -> None:
        """Count from where it did without a box."""
        first, self.previous = self._without_box, None
        self._monitor.load_counts({})
        self._board.status = self._board.status._replace(
            pauses=first.pauses,
            compute=first.compute,
            reports=first.reports,
            restarts=first.restarts,
        )


def _guarded_by(
    guarded: Callable[[], AbstractContextManager[object]], note: Callable[..., object]
) -> Callable[..., None]:
    def noted(*what: object) -> None:
        with guarded():
            note(*what)

    return noted


def take_over(box: Box, status: RunStatus, monitor: TrainingMonitor) -> RunStatus:
    """Count on from where a process was that did not complete its run; the status with its sums.

    A run that has completed is over, and the next one of its name counts from 0.
    """
    if box.state == catalog.COMPLETED:
        return status
    counters = box.counters
    monitor.load_counts({**counters.counts, "totals": _not_less(counters.totals)})
    again = 0 if box.lives or box.is_of_this_process else 1
    return status._replace(
        pauses=_with(status.pauses, counters.pauses),
        compute=_with(status.compute, counters.compute),
        reports=counters.reports,
        restarts=max(status.restarts, counters.restarts + again),
    )


def _not_less(totals: Totals) -> dict[str, float]:
    """Sums of measurements with a little added, since it may matter by the last bit in which order
    they were added up, and what is lower by one bit looks like a counter that began anew."""
    return {
        name: value * (1.0 + _ROUNDING) if name in _MEASURED else value
        for name, value in totals._asdict().items()
    }


def _with(known: Mapping[str, float], counted: Mapping[str, float]) -> Mapping[str, float]:
    return MappingProxyType({name: counted.get(name, value) for name, value in known.items()})
