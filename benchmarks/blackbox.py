# SPDX-License-Identifier: Apache-2.0
"""What the black box adds to a step, beside what people do so that the last steps are not lost.

Goal: less than a line of JSON that is flushed, and less than the step's own `observe`.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from benchmarks.observe import observing
from benchmarks.report import Runner, print_ratios, side_by_side
from training_exporter import StepSignals, TrainingExporter
from training_exporter.detectors import robust_detectors
from training_exporter.lifecycle.blackbox import BlackBox
from training_exporter.monitor import TrainingMonitor
from training_exporter.status import RunStatus

WITHOUT = "observe(), no black box"


def observe(directory: Path | None) -> Runner:
    """The exporter's step, state every 100 steps included."""
    place = None if directory is None else str(directory)
    return observing(TrainingExporter(serve=False, blackbox_dir=place).observe)


def note(directory: Path) -> Runner:
    """The step's record alone."""
    box = BlackBox(directory, TrainingMonitor(robust_detectors()), lambda: 0.0, lambda: None)
    status = RunStatus("run", 0)
    return observing(lambda signals: box.note_step(signals, status))


def json_line(directory: Path) -> Runner:
    """A line of JSON, flushed so that it outlives the process."""
    file = (directory / "steps.jsonl").open("w")

    def write(signals: StepSignals) -> None:
        row = {"step": signals.step, "time": signals.timestamp, "loss": signals.loss}
        row |= {"grad_norm": signals.grad_norm, "learning_rates": dict(signals.learning_rates)}
        row |= {"step_seconds": signals.step_seconds, "tokens": signals.tokens}
        file.write(json.dumps(row) + "\n")
        file.flush()

    return observing(write)


def main(_: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        candidates = {
            WITHOUT: observe(None),
            "observe(), with it": observe(folder / "whole"),
            "the record of a step": note(folder / "record"),
            "a line of JSON, flushed": json_line(folder),
        }
        print_ratios(side_by_side(candidates), WITHOUT)


if __name__ == "__main__":
    main([])
