# SPDX-License-Identifier: Apache-2.0
"""Troubles with GPUs: each counted whenever it is met, and logged when it begins and ends."""

from __future__ import annotations

import logging

from training_exporter.catalog import GPU_FAILURES

logger = logging.getLogger("training_exporter")


class Troubles:
    """Counts by catalog.GPU_FAILURES in `counts`, and remembers what was said already."""

    def __init__(self) -> None:
        self.counts: dict[str, float] = dict.fromkeys(GPU_FAILURES, 0.0)
        self._told: set[str] = set()

    def meet(self, reason: str, subject: str, message: str) -> None:
        """Something could not be read.

        Args:
            reason: one of catalog.GPU_FAILURES.
            subject: what is in trouble, such as "the driver"; logged again only after `settle`.
            message: what is the matter, and what follows.
        """
        self.counts[reason] += 1
        self.tell(subject, message)

    def tell(self, subject: str, message: str) -> None:
        """Log without counting."""
        if subject not in self._told:
            self._told.add(subject)
            logger.warning("%s; the training is not affected", message)

    def settle(self, subject: str) -> None:
        """It can be read again."""
        if subject in self._told:
            self._told.discard(subject)
            logger.info("%s answers again", subject)
