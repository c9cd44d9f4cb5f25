# SPDX-License-Identifier: Apache-2.0
"""Drawing pages no more often than the training can spare.

Drawing holds the interpreter's lock, and anyone who can reach the port can ask for it as often as
they like. One page is therefore drawn at a time, who waits for the same page meanwhile shares the
next drawing, and when a lot has been drawn there is a rest after each. A few scrapers never notice.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from threading import Lock
from time import monotonic, sleep, thread_time
from typing import Generic, TypeVar

REST = 3.0
"""Times the drawing took; drawing then takes a quarter of one core at the most."""
CREDIT_SECONDS = 1.0
"""How much rest may be owed before there is one: some fifty pages of 2,000 series."""
LONGEST_REST = 0.2
PATIENCE_SECONDS = 8.0
"""How long to wait for the drawing of another, a little less than Prometheus waits for us."""

T = TypeVar("T")


class Paced(Generic[T]):
    """Hands out results that are never older than the request for them.

    Args:
        rest: how long to rest, as a multiple of the time the work took.
    """

    def __init__(self, rest: float = REST) -> None:
        self._rest = rest
        self._lock = Lock()
        self._begun = 0
        self._rested_at = 0.0
        self._last: tuple[Hashable, int, T] | None = None

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The result for a key: a shared one whose making began after this call, or a new one.

        Raises:
            TimeoutError: the making for another call does not come to its end.
        """
        begun_before = self._begun
        if not self._lock.acquire(timeout=PATIENCE_SECONDS):
            raise TimeoutError("an earlier request for this page is still not answered")
        try:
            if self._last is not None:
                last_key, number, result = self._last
                if last_key == key and number > begun_before:
                    return result
            return self._make(key, make)
        finally:
            self._lock.release()

    def _make(self, key: Hashable, make: Callable[[], T]) -> T:
        owed = self._rested_at - CREDIT_SECONDS - monotonic()
        if owed > 0:
            sleep(min(owed, LONGEST_REST))
        self._begun += 1
        self._last = None
        started = thread_time()
        try:
            result = make()
        finally:
            spent = thread_time() - started
            self._rested_at = max(self._rested_at, monotonic()) + (1 + self._rest) * spent
        self._last = (key, self._begun, result)
        return result
