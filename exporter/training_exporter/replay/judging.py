# SPDX-License-Identifier: Apache-2.0
"""A past run before the monitor: what was found, from where to where."""

from __future__ import annotations

from dataclasses import dataclass

from training_exporter.detectors import Options, build_detectors
from training_exporter.monitor import TrainingMonitor
from training_exporter.panel import DetectorError
from training_exporter.replay.rows import Event
from training_exporter.replay.trouble import Troubles
from training_exporter.signals import StepSignals
from training_exporter.snapshot import Anomaly

MAX_KEPT = 10_000
"""Anomalies that are kept one by one; all are counted."""


@dataclass
class Episode:
    """An anomaly from its beginning to its last finding.

    Attributes:
        begun: its beginning.
        first_row, last_row: rows of the log, counted from 0.
        last_step: step of the last finding.
        over: False when it still went on at the end of the log.
    """

    begun: Anomaly
    first_row: int
    last_row: int
    last_step: int
    over: bool = False


class Judge:
    """One profile's verdict on a run, by the monitor that a live run has.

    Args:
        profile: the detectors.
        options: theirs.
        troubles: takes what is wrong.

    Attributes:
        episodes: the first MAX_KEPT anomalies, in the order of their beginnings.
        rows: steps that were judged.
    """

    def __init__(self, profile: str, options: Options, troubles: Troubles) -> None:
        self.profile = profile
        self.options = options
        self.monitor = TrainingMonitor(build_detectors(profile, options))
        self.episodes: list[Episode] = []
        self.rows = 0
        self._troubles = troubles
        self._recent = self.monitor.recent
        self._open: dict[str, Episode] = {}
        self._place = {status.kind: i for i, status in enumerate(self.monitor.anomalies)}

    def observe(self, event: Event) -> None:
        """Take in a step or an evaluation."""
        try:
            if isinstance(event, StepSignals):
                self.rows += 1
                self.monitor.observe(event)
            else:
                self.monitor.observe_evaluation(event)
        except DetectorError as error:
            self._troubles.note(str(error), f"step {event.step}")
        if self.monitor.recent is not self._recent:
            self._begin()
        if self._open:
            self._follow(event.step)

    def totals(self) -> dict[str, int]:
        """How many anomalies of each kind there were, of every kind that is looked for."""
        return {status.kind: status.total for status in self.monitor.anomalies}

    def never_ready(self) -> list[str]:
        """Kinds that could not be judged: the log lacks what they go by, or is too short."""
        return [each.kind for each in self.monitor.anomalies if not each.ready and not each.total]

    def _begin(self) -> None:
        before, self._recent = self._recent, self.monitor.recent
        row = max(0, self.rows - 1)
        for anomaly in self._recent:
            if any(anomaly is other for other in before):
                continue
            self._close(anomaly.kind)
            episode = Episode(anomaly, row, row, anomaly.step)
            self._open[anomaly.kind] = episode
            if len(self.episodes) < MAX_KEPT:
                self.episodes.append(episode)

    def _follow(self, step: int) -> None:
        statuses = self.monitor.anomalies
        for kind, episode in list(self._open.items()):
            status = statuses[self._place[kind]]
            if not status.active:
                self._close(kind)
            elif status.last_step == step:
                episode.last_step, episode.last_row = step, max(0, self.rows - 1)

    def _close(self, kind: str) -> None:
        episode = self._open.pop(kind, None)
        if episode is not None:
            episode.over = True
