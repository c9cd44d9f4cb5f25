# SPDX-License-Identifier: Apache-2.0
"""TensorBoard: the same numbers as curves; anomalies, reports and the summary as text."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Final

from training_exporter.layers.histograms import LayerHistograms
from training_exporter.requirements import needed_by
from training_exporter.signals import Evaluation
from training_exporter.sinks.points import PREFIX, point_of
from training_exporter.sinks.sink import Point, RunInfo, Sink
from training_exporter.snapshot import Anomaly
from training_exporter.status import ReportNote
from training_exporter.summary.making import RunSummary
from training_exporter.summary.text import headline, summary_rows

with needed_by("TensorBoardSink", "torch", "tensorboard", install="torch tensorboard"):
    from torch.utils.tensorboard import SummaryWriter

HISTOGRAM_STEPS: Final = 500


class TensorBoardSink(Sink):
    """Writes event files.

    Args:
        log_dir: folder of the files. One that the Trainer writes to as well shows both together.
        name: name of the sink.
        histogram_steps: optimiser steps from one histogram of each layer's gradients and weights to
            the next, the first step being the first; 0 for none.

    Raises:
        TypeError: `log_dir` is no path.
    """

    def __init__(
        self,
        log_dir: str | PathLike[str],
        *,
        name: str = "tensorboard",
        histogram_steps: int = HISTOGRAM_STEPS,
    ) -> None:
        if not isinstance(log_dir, str | PathLike):
            raise TypeError(f"log_dir must be the path of a folder, got {log_dir!r}")
        self.name = name
        self.histogram_steps = histogram_steps
        self._log_dir = log_dir
        self._writer: SummaryWriter | None = None
        self._step = 0

    def start(self, run: RunInfo) -> None:
        self._open()

    def steps(self, points: Sequence[Point]) -> None:
        writer = self._open()
        for step, timestamp, values in points:
            for name, value in values.items():
                writer.add_scalar(PREFIX + name, value, step, timestamp)
        self._step = points[-1].step
        writer.flush()

    def anomaly(self, anomaly: Anomaly) -> None:
        writer = self._open()
        text = f"**{anomaly.kind}**: {anomaly.in_words}"
        writer.add_text(f"{PREFIX}anomalies", text, anomaly.step, anomaly.timestamp)
        writer.flush()

    def evaluation(self, results: Evaluation) -> None:
        self.steps([point_of(results)])

    def report(self, note: ReportNote) -> None:
        writer = self._open()
        where = "" if note.path is None else f"\n\n`{note.path}`"
        writer.add_text(f"{PREFIX}reports", note.summary + where, self._step)
        writer.flush()

    def histograms(self, found: LayerHistograms) -> None:
        writer = self._open()
        for what, layers in (("gradients", found.gradients), ("parameters", found.parameters)):
            for layer, of in layers.items():
                writer.add_histogram_raw(
                    f"{PREFIX}{what}/{layer}",
                    of.least, of.greatest, of.values, of.sum, of.squares, of.limits, of.counts,
                    found.step, walltime=found.timestamp,
                )  # fmt: skip
        writer.flush()

    def finish(self, summary: RunSummary) -> None:
        writer, self._writer = self._open(), None
        rows = [f"| {name} | {_cell(text)} |" for name, text in summary_rows(summary)]
        text = "\n".join([f"**{headline(summary)}**", "", "| | |", "|---|---|", *rows])
        writer.add_text(f"{PREFIX}summary", text, summary.step or 0)
        writer.close()

    def _open(self) -> SummaryWriter:
        if self._writer is None:
            self._writer = SummaryWriter(self._log_dir, filename_suffix=".monitor")
        return self._writer


def _cell(text: str) -> str:
    """What an exception says may have a bar in it, which would begin another cell."""
    return text.replace("|", "\\|")
