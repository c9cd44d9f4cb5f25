# SPDX-License-Identifier: Apache-2.0
"""The end of a run, and staying until those who scrape it have seen that end.

The last values before the end are the ones that matter, and a run that ended is not one that
vanished. When the process ends, its page therefore stays up until each scraper has fetched it once
more, or a bounded time has passed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from time import monotonic, sleep
from typing import Final, NamedTuple

from training_exporter import catalog
from training_exporter.monitor import TrainingMonitor
from training_exporter.status import StatusBoard

MAX_SCRAPERS: Final = 16
REMEMBERED_GAPS: Final = 4
INTERVALS: Final = 2
"""Scrape intervals to wait for the next scrape, which may be a late one."""
POLL_SECONDS: Final = 0.05
DELIVERY_SECONDS: Final = 0.25
"""From a request to its answer on the wire: the page has to be drawn and sent still."""


def conclude(board: StatusBoard, monitor: TrainingMonitor, error: BaseException | None) -> None:
    """Move a run to its final state: completed without an error, stopped by Ctrl-C or sys.exit,
    else crashed."""
    if isinstance(error, Exception):
        board.status = board.status.crashed_by(error)
    else:
        monitor.end()  # what went on ends with a run that did not die of it
        state = catalog.COMPLETED if error is None else catalog.STOPPED
        board.status = board.status._replace(state=state, failure=None, reason=None)
    board.after_end()


def conclude_at_exit(
    board: StatusBoard, monitor: TrainingMonitor, error: BaseException | None
) -> None:
    """Conclude a run that nobody has concluded, when its process ends or nobody can go on with it.

    It has completed only if its planned last step was reached; all else that is no error is a stop,
    since nobody has said that it was meant to end there.

    Args:
        board, monitor: of the run.
        error: what the process ends with, None when there is no such thing or it is unknown.
    """
    if board.status.state in catalog.FINAL_STATES:
        return
    signals = monitor.snapshot.signals
    planned = signals.max_steps if signals is not None else None
    if error is None and not (signals is not None and planned and signals.step >= planned):
        error = SystemExit()
    conclude(board, monitor, error)


def last_error() -> BaseException | None:
    """The exception that ends this process, None when there is none.

    In an interactive session the last one is from some earlier input, and ends nothing.
    """
    if hasattr(sys, "ps1"):
        return None
    error: BaseException | None = getattr(sys, "last_value", None)
    return error


class _Scraper(NamedTuple):
    came: float
    gaps: tuple[float, ...]
    saw_end: bool


class Scrapers:
    """Who scrapes a page, how often, and whether they have seen the end of the run.

    There is no lock: a garbage collection, which may run anywhere, must be able to ask. Of two
    scrapers that come at the very same moment one may go unnoticed until it comes again.

    Args:
        is_over: whether the run has ended.
        clock: monotonic time in seconds.
    """

    def __init__(self, is_over: Callable[[], bool], clock: Callable[[], float] = monotonic) -> None:
        self._is_over = is_over
        self._clock = clock
        self._known: Mapping[str, _Scraper] = {}

    def note(self, scraper: str) -> None:
        """A scraper asks for the page, which is about to be drawn."""
        now, over = self._clock(), self._is_over()
        known = dict(self._known)
        before = known.pop(scraper, None)
        gaps = () if before is None else (*before.gaps, now - before.came)[-REMEMBERED_GAPS:]
        known[scraper] = _Scraper(now, gaps, over)
        if len(known) > MAX_SCRAPERS:
            del known[next(iter(known))]
        self._known = known

    def expect(self, others: Scrapers) -> None:
        """Those who scraped the run before on this port will come for this one too."""
        self._known = {
            name: scraper._replace(saw_end=False) for name, scraper in others._known.items()
        }

    def due(self, at_most: float) -> float:
        """Seconds until each scraper should have fetched a page with the end on it; 0 when all
        have, or those who have not are overdue.

        Args:
            at_most: seconds to expect one in that has come only once.
        """
        now = self._clock()
        return max([0.0, *[_due(scraper, at_most) - now for scraper in self._known.values()]])


def _due(scraper: _Scraper, at_most: float) -> float:
    if scraper.saw_end:
        return scraper.came + DELIVERY_SECONDS
    # The longest gap, since two that scrape by one name come soon after each other.
    return scraper.came + (INTERVALS * max(scraper.gaps) if scraper.gaps else at_most)


def linger(
    due: Callable[[], float],
    at_most: float,
    *,
    clock: Callable[[], float] = monotonic,
    pause: Callable[[float], None] = sleep,
) -> None:
    """Wait until nothing is due any more, or `at_most` seconds have passed."""
    deadline = clock() + at_most
    while due() > 0.0 and clock() < deadline:
        pause(POLL_SECONDS)
