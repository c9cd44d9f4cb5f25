# SPDX-License-Identifier: Apache-2.0
"""The end of a run, and staying until those who scrape it have seen that end.

The last values before the end are the ones that matter, and a run that ended is not one that
vanished. When the process ends, its page therefore stays up until each scraper has fetched it once
more, or a bounded time has passed.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from time import monotonic, sleep
from typing import Final, NamedTuple

from training_exporter import catalog
from training_exporter.monitor import TrainingMonitor
from training_exporter.status import StatusBoard

MAX_SCRAPERS: Final = 16
INTERVALS: Final = 2
"""Scrape intervals to wait for the next scrape, which may be a late one."""
POLL_SECONDS: Final = 0.05
DELIVERY_SECONDS: Final = 0.25
"""From a request to its answer on the wire: the page has to be drawn and sent still."""


def conclude(board: StatusBoard, monitor: TrainingMonitor, error: BaseException | None) -> None:
    """Move a run to its final state: completed without an error, stopped by Ctrl-C or sys.exit,
    else crashed."""
    if isinstance(error, Exception):
        failure = type(error).__name__
        board.status = board.status._replace(state=catalog.CRASHED, failure=failure)
        return
    monitor.end()  # what went on ends with a run that did not die of it
    state = catalog.COMPLETED if error is None else catalog.STOPPED
    board.status = board.status._replace(state=state, failure=None)


def conclude_at_exit(
    board: StatusBoard, monitor: TrainingMonitor, error: BaseException | None
) -> None:
    """Conclude a run that nobody has concluded when its process ends.

    Args:
        board, monitor: of the run.
        error: what the process ends with, None when there is no such thing or it is unknown; a
            run that is short of its planned last step was then stopped.
    """
    if board.status.state in catalog.FINAL_STATES:
        return
    signals = monitor.snapshot.signals
    planned = signals.max_steps if signals is not None else None
    if error is None and signals is not None and planned and signals.step < planned:
        error = SystemExit()
    conclude(board, monitor, error)


class _Scraper(NamedTuple):
    came: float
    interval: float | None
    saw_end: bool


class Scrapers:
    """Who scrapes a page, how often, and whether they have seen the end of the run.

    Args:
        is_over: whether the run has ended.
        clock: monotonic time in seconds.
    """

    def __init__(self, is_over: Callable[[], bool], clock: Callable[[], float] = monotonic) -> None:
        self._is_over = is_over
        self._clock = clock
        self._lock = Lock()
        self._known: dict[str, _Scraper] = {}

    def note(self, scraper: str) -> None:
        """A scraper asks for the page, which is about to be drawn."""
        now, over = self._clock(), self._is_over()
        with self._lock:
            before = self._known.pop(scraper, None)
            interval = None if before is None else now - before.came
            self._known[scraper] = _Scraper(now, interval, over)
            if len(self._known) > MAX_SCRAPERS:
                del self._known[next(iter(self._known))]

    def due(self, at_most: float) -> float:
        """Seconds until each scraper should have fetched a page with the end on it; 0 when all
        have, or those who have not are overdue.

        Args:
            at_most: seconds to expect one in that has come only once.
        """
        with self._lock:
            known = list(self._known.values())
        return max([0.0, *[_due(scraper, at_most) - self._clock() for scraper in known]])


def _due(scraper: _Scraper, at_most: float) -> float:
    if scraper.saw_end:
        return scraper.came + DELIVERY_SECONDS
    return scraper.came + (at_most if scraper.interval is None else INTERVALS * scraper.interval)


def linger(
    scrapers: Scrapers,
    at_most: float,
    *,
    clock: Callable[[], float] = monotonic,
    pause: Callable[[float], None] = sleep,
) -> None:
    """Wait until all scrapers have seen the end; not longer than two of their intervals or
    `at_most` seconds, and not at all when they have or nobody scrapes."""
    deadline = clock() + at_most
    while scrapers.due(at_most) > 0.0 and clock() < deadline:
        pause(POLL_SECONDS)
