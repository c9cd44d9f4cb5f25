# SPDX-License-Identifier: Apache-2.0
"""A sink that remembers, and a run to tell it of."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Event

from training_exporter.detectors import robust_detectors
from training_exporter.layers.histograms import LayerHistograms
from training_exporter.monitor import TrainingMonitor
from training_exporter.signals import Evaluation, StepSignals
from training_exporter.sinks import Point, RunInfo, Sink
from training_exporter.sinks.feed import SinkFeed
from training_exporter.snapshot import Anomaly
from training_exporter.status import ExporterHealth, ReportNote, RunStatus, StatusBoard
from training_exporter.summary.making import RunSummary

SPIKE = Anomaly("loss_spike", 3, 103.0, 9.0, 2.0)
RESULTS = Evaluation(3, 103.0, "eval", 2.5, {"accuracy": 0.5})
NOTE = ReportNote("loss", "loss NaN at step 3; likely cause: the data", None, True)
END = RunSummary("tiny", 0, "completed", step=3, steps=3.0)


class Recording(Sink):
    """Remembers what it is told. It does not come back from `steps` before `gate` is open, and
    raises there what is in `raising`, and in `start` what is in `refusing`."""

    def __init__(
        self,
        name: str = "recording",
        *,
        raising: BaseException | None = None,
        histogram_steps: int = 0,
    ) -> None:
        self.name = name
        self.histogram_steps = histogram_steps
        self.raising = raising
        self.refusing: Exception | None = None
        self.told: list[object] = []
        self.first_steps: list[int | None] = []
        self.gate = Event()
        self.gate.set()
        self.arrived = Event()

    def start(self, run: RunInfo) -> None:
        if self.refusing is not None:
            raise self.refusing
        self.told.append(run._replace(step=None))
        self.first_steps.append(run.step)

    def steps(self, points: Sequence[Point]) -> None:
        self.arrived.set()
        assert self.gate.wait(10)
        if self.raising is not None:
            raise self.raising
        self.told += [point.step for point in points]

    def anomaly(self, anomaly: Anomaly) -> None:
        self.told.append(anomaly)

    def evaluation(self, results: Evaluation) -> None:
        self.told.append(results)

    def report(self, note: ReportNote) -> None:
        self.told.append(note)

    def histograms(self, found: LayerHistograms) -> None:
        self.told.append(found)

    def finish(self, summary: RunSummary) -> None:
        self.told.append(summary)


class Run:
    """A run of this rank, with these sinks."""

    def __init__(self, *sinks: Sink, rank: int = 0) -> None:
        self.health = ExporterHealth()
        self.board = StatusBoard(RunStatus("tiny", rank, info={"model": "GPT"}))
        self.monitor = TrainingMonitor(robust_detectors())
        self.feed = SinkFeed(sinks, self.board, self.monitor, self.health)

    def step(self, *steps: int) -> None:
        """Take steps of these numbers."""
        for number in steps:
            signals = StepSignals(number, 100.0 + number, loss=2.0)
            self.monitor.observe(signals)
            self.feed.step(signals)

    def end(self) -> None:
        """Tell the end, and wait until that was taken in."""
        self.feed.finish(END)
        self.feed.wait()
