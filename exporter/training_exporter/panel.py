# SPDX-License-Identifier: Apache-2.0
"""The detectors of a run: they are asked on each step, and what they find becomes anomalies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from training_exporter.catalog import MEMORY_GROWTH, RESTART, THROUGHPUT_DROP
from training_exporter.detectors.base import Detector, Finding, Verdict
from training_exporter.signals import Evaluation, StepSignals, require_numbers
from training_exporter.snapshot import Anomaly, AnomalyStatus
from training_exporter.track import Track

RECENT_ANOMALIES = 20
OF_THE_PROCESS = frozenset({MEMORY_GROWTH, THROUGHPUT_DROP})
"""Kinds that are judged by what the machine did, which says nothing about another process on
perhaps another machine: what they learnt neither goes back with the weights nor on with them."""


class DetectorError(Exception):
    """A detector raised. It is retired, all else of the step was done.

    Attributes:
        detector: its kind.
    """

    def __init__(self, detector: str) -> None:
        super().__init__(f"the detector {detector} raised and was retired")
        self.detector = detector


class Panel:
    """Asks detectors, and keeps what they found.

    One that raises is retired: the step is judged by all others, and who asked may have it raised.

    Args:
        detectors: the detectors to ask, at most one of a kind.

    Attributes:
        recent: the last anomalies, oldest first; another tuple whenever there is a new one.
        statuses: how each detector stands.
        failure: that a detector raised, until `raise_failure`.

    Raises:
        ValueError: two detectors of one kind.
    """

    def __init__(self, detectors: Iterable[Detector]) -> None:
        self._tracks = [Track(detector) for detector in detectors]
        kinds = [track.kind for track in self._tracks]
        if len(set(kinds)) < len(kinds):
            raise ValueError(f"at most one detector of a kind, got {', '.join(sorted(kinds))}")
        # A restart is judged first: it resets all the others before they see the step.
        self._tracks.sort(key=lambda track: track.kind != RESTART)
        self._settling: list[Track] = []
        self._restarted = False
        self.recent: tuple[Anomaly, ...] = ()
        self.statuses: tuple[AnomalyStatus, ...] = ()
        self.failure: DetectorError | None = None
        self._refresh_statuses()

    def judge(self, signals: StepSignals) -> bool:
        """Ask about a step; True if it is a restart, so that all that was learnt is forgotten.

        Raises:
            TypeError: a field is not a number, and a detector stumbled over it.
        """
        self._restarted = changed = False
        for track in self._tracks:
            try:
                verdict = track.observe(signals)
            except Exception as error:  # raised by raise_failure(), once all else is done
                require_numbers(signals)  # else it is not the detector's fault
                self._retire(track, error)
                changed = True
                continue
            if verdict is not track.verdict:
                changed = True
                self._note(track, verdict, signals.step, signals.timestamp)
        if self._settling:
            self._settle(signals)
            changed = True
        if changed:
            self._refresh_statuses()
        return self._restarted

    def judge_evaluation(self, evaluation: Evaluation) -> bool:
        """Ask about an evaluation, as about a step."""
        self._restarted = False
        for track in self._tracks:
            self._judge_evaluation(track, evaluation)
        self._refresh_statuses()
        return self._restarted

    def raise_failure(self) -> NoReturn:
        """Raise what a detector did, once.

        Raises:
            DetectorError: always; there must be a failure.
        """
        failure, self.failure = self.failure, None
        assert failure is not None
        raise failure

    def end(self) -> None:
        """The run is over: no anomaly is active any more."""
        for track in self._settling:
            track.active = False
        self._settling = []
        self._refresh_statuses()

    def levels(self) -> dict[str, Any]:
        """What was learnt that belongs to the weights, by kind."""
        return {
            track.kind: track.levels() for track in self._tracks if track.kind not in OF_THE_PROCESS
        }

    def load_levels(self, saved: Mapping[str, Any]) -> None:
        """Take over what was learnt. What is missing starts afresh."""
        for track in self._tracks:
            if track.kind not in OF_THE_PROCESS:
                track.load_levels(saved.get(track.kind) or {})
        self._settling = [track for track in self._tracks if track.active]
        self._refresh_statuses()

    def counts(self) -> dict[str, Any]:
        """What was found, by kind."""
        return {track.kind: track.counts() for track in self._tracks}

    def load_counts(self, saved: Mapping[str, Any]) -> None:
        """Take over what an earlier process found. What is missing starts at 0."""
        for track in self._tracks:
            track.load_counts(saved.get(track.kind) or {})
        self._refresh_statuses()

    def _judge_evaluation(self, track: Track, evaluation: Evaluation) -> None:
        try:
            verdict = track.observe_evaluation(evaluation)
        except Exception as error:  # raised by raise_failure(), once all else is done
            self._retire(track, error)
        else:
            if verdict is not track.verdict:  # else it is that of the last step, and was noted
                self._note(track, verdict, evaluation.step, evaluation.timestamp)

    def _note(self, track: Track, verdict: Verdict, step: int, timestamp: float) -> None:
        track.verdict = verdict
        if not isinstance(verdict, Finding):
            return
        if track.found(verdict, step, timestamp):
            begun = Anomaly(track.kind, step, timestamp, *verdict)
            self.recent = (*self.recent, begun)[-RECENT_ANOMALIES:]
        if track.kind == RESTART:
            self._forget_levels(track)
            self._restarted = True
        if track not in self._settling:
            self._settling.append(track)

    def _settle(self, signals: StepSignals) -> None:
        for track in self._settling:
            track.settle(signals.step, signals.timestamp)
        self._settling = [track for track in self._settling if track.active]

    def _forget_levels(self, restart: Track) -> None:
        """After a restart what was learnt before says nothing about the new steps."""
        self._settling = []
        for track in self._tracks:
            if track is restart:
                continue
            try:
                track.forget_levels()
            except Exception as error:  # raised by raise_failure(), once all else is done
                self._retire(track, error)

    def _retire(self, track: Track, error: Exception) -> None:
        track.retire()
        self._settling = [other for other in self._settling if other is not track]
        self.failure = DetectorError(track.kind)
        self.failure.__cause__ = error

    def _refresh_statuses(self) -> None:
        self.statuses = tuple([track.status() for track in self._tracks])
