# SPDX-License-Identifier: Apache-2.0
"""Which anomalies a run had, and when each began."""

from __future__ import annotations

import logging

from training_exporter.snapshot import AnomalyStatus, Snapshot

logger = logging.getLogger("training_exporter.demo")


class Diary:
    """Compares the anomalies of each step with those of the step before, and says which are over.

    Attributes:
        begun: the steps at which anomalies began, by kind, in the order of the first of each.
    """

    def __init__(self) -> None:
        self.begun: dict[str, list[int]] = {}
        self._seen: tuple[AnomalyStatus, ...] = ()

    def note(self, snapshot: Snapshot) -> None:
        """Take in the state after a step."""
        if snapshot.anomalies is self._seen:  # as on nearly every step
            return
        before = {status.kind: status for status in self._seen}
        self._seen = snapshot.anomalies
        for status in snapshot.anomalies:
            self._compare(before.get(status.kind), status)

    def _compare(self, before: AnomalyStatus | None, now: AnomalyStatus) -> None:
        if now.total > (before.total if before else 0) and now.last_step is not None:
            self.begun.setdefault(now.kind, []).append(now.last_step)
        if before is not None and before.active and not now.active:
            logger.info("%s is over, last seen at step %s", now.kind, now.last_step)
