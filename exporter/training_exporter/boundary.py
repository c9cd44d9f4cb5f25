# SPDX-License-Identifier: Apache-2.0
"""The step's error boundary: what goes wrong in the exporter stays in the exporter."""

from __future__ import annotations

import logging
from time import perf_counter
from types import TracebackType

from training_exporter.status import ExporterHealth

logger = logging.getLogger("training_exporter")


class StepBoundary:
    """`with boundary.at(place):` around what the exporter does on the training thread.

    An exception is logged with its traceback the first time its class comes up at a place (that of
    a detector: the first time for this detector), counted each time, and goes no further.
    KeyboardInterrupt and SystemExit are the user's and pass. The time inside the outermost block is
    added to the overhead of the step, but for the detectors' part, which is counted by itself. For
    one thread.
    """

    def __init__(self, health: ExporterHealth) -> None:
        self.health = health
        self.depth = 0
        self._seen: set[tuple[str, type[Exception], str | None]] = set()

    def at(self, place: str) -> _Block:
        """A block at one of catalog.ERROR_PLACES."""
        return _Block(self, place)

    def report(self, place: str, error: Exception) -> None:
        """Count an exception, and log it when it is the first of its class at this place."""
        self.health.count_error(place)
        kind = (place, type(error), getattr(error, "detector", None))
        if kind not in self._seen:
            self._seen.add(kind)
            logger.error(
                "error in the exporter (%s); the training is not affected, and more errors of this "
                "kind are only counted, in training_exporter_errors_total",
                place,
                exc_info=error,
            )


class _Block:
    __slots__ = ("_boundary", "_observed", "_place", "_started")

    def __init__(self, boundary: StepBoundary, place: str) -> None:
        self._boundary = boundary
        self._place = place

    def __enter__(self) -> None:
        self._boundary.depth += 1
        self._observed = self._boundary.health.observe_seconds
        self._started = perf_counter()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        boundary = self._boundary
        boundary.depth -= 1
        if not boundary.depth:
            health = boundary.health
            observing = health.observe_seconds - self._observed
            health.step_seconds += perf_counter() - self._started - observing
        if not isinstance(error, Exception):
            return False
        boundary.report(self._place, error)
        return True
