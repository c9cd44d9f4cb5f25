# SPDX-License-Identifier: Apache-2.0
"""What is told of an anomaly when it begins: to the log and to the sinks."""

from __future__ import annotations

import logging

from training_exporter.monitor import TrainingMonitor
from training_exporter.sinks.feed import SinkFeed
from training_exporter.snapshot import Anomaly

logger = logging.getLogger("training_exporter")


class Announcer:
    """Tells each anomaly once.

    Args:
        monitor: finds them.
        sinks: who else is told, if anybody.
    """

    def __init__(self, monitor: TrainingMonitor, sinks: SinkFeed | None) -> None:
        self._monitor = monitor
        self._sinks = sinks
        self._told: tuple[Anomaly, ...] = ()

    def tell_new(self) -> None:
        """Tell those that began since the last call."""
        recent, told = self._monitor.recent, self._told
        if recent is told:
            return
        self._told = recent
        for anomaly in recent:
            if not any(anomaly is other for other in told):
                self._tell(anomaly)

    def _tell(self, anomaly: Anomaly) -> None:
        logger.warning("%s at step %d: %s", anomaly.kind, anomaly.step, anomaly.in_words)
        if self._sinks is not None:
            self._sinks.anomaly(anomaly)
