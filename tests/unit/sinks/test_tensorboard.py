# SPDX-License-Identifier: Apache-2.0
"""What TensorBoard is told beside the steps."""

from __future__ import annotations

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator, ScalarEvent

from tests.unit.sinks.recording import END
from training_exporter.signals import Evaluation
from training_exporter.sinks import Point, RunInfo
from training_exporter.sinks.tensorboard import TensorBoardSink
from training_exporter.status import ReportNote
from training_exporter.summary.making import RunSummary


def told(folder: Path, sink: TensorBoardSink) -> EventAccumulator:
    """What its own reader finds once the run has ended."""
    sink.finish(END)
    return EventAccumulator(str(folder)).Reload()


def test_evaluations_are_curves(tmp_path: Path) -> None:
    """At their own step and time, each data set under its own name."""
    sink = TensorBoardSink(tmp_path)
    sink.start(RunInfo("tiny", 0, {}))
    sink.evaluation(Evaluation(20, 120.0, "eval", 2.0, {"f1": 0.5}))
    sink.evaluation(Evaluation(20, 121.0, "wiki", 3.0))

    reader = told(tmp_path, sink)
    for name, time, value in (("loss", 120.0, 2.0), ("f1", 120.0, 0.5), ("wiki_loss", 121.0, 3.0)):
        assert reader.Scalars(f"monitor/eval_{name}") == [ScalarEvent(time, 20, value)]


@pytest.mark.parametrize(
    ("path", "text"), [("a/b.json", b"it was the batch\n\n`a/b.json`"), (None, b"it was the batch")]
)
def test_a_report_is_text(tmp_path: Path, path: str | None, text: bytes) -> None:
    """Which says where its file is, if there is one, at the last step that was told."""
    sink = TensorBoardSink(tmp_path)
    sink.steps([Point(6, 106.0, {"loss": 1.0}), Point(7, 107.0, {"loss": 1.0})])
    sink.report(ReportNote("loss", "it was the batch", path, alarming=True))

    (report,) = told(tmp_path, sink).Tensors("monitor/reports/text_summary")
    assert (report.step, report.tensor_proto.string_val[0]) == (7, text)


@pytest.mark.parametrize("log_dir", [5, None, ["runs"]])
def test_a_folder_is_a_path(log_dir: object) -> None:
    """What is none is refused before the training begins."""
    with pytest.raises(TypeError, match="log_dir must be the path of a folder, got"):
        TensorBoardSink(log_dir)  # type: ignore[arg-type]


def test_a_bar_is_no_end_of_a_cell(tmp_path: Path) -> None:
    """What an exception says may have one."""
    sink = TensorBoardSink(tmp_path)
    sink.start(RunInfo("tiny", 0, {}))
    sink.finish(RunSummary("tiny", 0, "crashed", "ValueError", reason="a | b"))

    reader = EventAccumulator(str(tmp_path)).Reload()
    (text,) = reader.Tensors("monitor/summary/text_summary")
    assert b"a \\| b" in text.tensor_proto.string_val[0]
