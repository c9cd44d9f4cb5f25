# SPDX-License-Identifier: Apache-2.0
"""What the demo says: its lines, its beginning and its end."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console, RenderableType

from tests.unit.programs import installed
from training_exporter import StepSignals, TrainingExporter
from training_exporter.demo.diary import Diary
from training_exporter.demo.display import Display, logs_on, numbers_of
from training_exporter.demo.plan import DemoPlan, Fault
from training_exporter.demo.report import summary, welcome, why_nan
from training_exporter.status import ReportNote


def exporter_after(*losses: float) -> TrainingExporter:
    exporter = TrainingExporter(serve=False)
    for step, loss in enumerate(losses, start=1):
        exporter.observe(StepSignals(step, 0.0, loss=loss))
    return exporter


def printed(content: RenderableType) -> str:
    recorder = Console(width=100)
    with recorder.capture() as capture:
        recorder.print(content)
    return capture.get()


def test_the_diary_knows_when_each_anomaly_began(caplog: pytest.LogCaptureFixture) -> None:
    """Two of a kind are two, and the end of each is told."""
    exporter, diary = TrainingExporter(serve=False), Diary()
    with caplog.at_level(logging.INFO, logger="training_exporter.demo"):
        for step in range(1, 41):
            loss = math.nan if step in {3, 4, 25} else 1.0
            exporter.observe(StepSignals(step, 0.0, loss=loss))
            diary.note(exporter.snapshot)

    assert diary.begun == {"non_finite": [3, 25]}
    over = [text for name, _, text in caplog.record_tuples if name == "training_exporter.demo"]
    assert over == [
        "non_finite is over, last seen at step 4",
        "non_finite is over, last seen at step 25",
    ]


def test_an_alarm_is_one_line() -> None:
    """It goes to the console and nowhere else, and is not wrapped."""
    terminal = Console(width=40)
    with terminal.capture() as capture, logs_on(terminal):
        exporter_after(1.0, math.nan)

    assert capture.get().startswith(" ▲ non_finite at step 2: ")
    assert len(capture.get().splitlines()) == 1


def test_the_log_is_left_as_it_was_found() -> None:
    """Who calls the demo from a program has a log of their own."""
    logger = logging.getLogger("training_exporter")
    before = list(logger.handlers), logger.propagate

    with logs_on(Console()):
        assert (logger.handlers, logger.propagate) != before

    assert (logger.handlers, logger.propagate) == before


def test_numbers_that_are_not_known_are_left_out() -> None:
    """Before the first step there are none; a NaN is a NaN."""
    assert numbers_of(exporter_after().snapshot) == ""
    assert numbers_of(exporter_after(2.5).snapshot) == "loss 2.500"
    assert numbers_of(exporter_after(math.nan).snapshot) == "loss nan"


def test_without_a_terminal_a_line_comes_now_and_then() -> None:
    """A bar would fill the log of a container."""
    pipe = Console(width=100, force_terminal=False)
    anything: Any = None
    with pipe.capture() as capture, Display(pipe, exporter_after(2.5), 120) as display:
        for step in range(1, 121):
            state: Any = SimpleNamespace(global_step=step)
            display.on_step_end(anything, state, anything)

    lines = [line for line in capture.get().splitlines() if line.strip()]
    assert lines == ["step 50/120  loss 2.500", "step 100/120  loss 2.500"]


def test_the_beginning_says_where_to_look() -> None:
    """The address, and what will go wrong."""
    plan = DemoPlan(steps=5, faults=(Fault("nan", 3),))

    assert "http://localhost:1/metrics" in printed(welcome(plan, "http://localhost:1"))
    assert "nan@3" in printed(welcome(plan, "http://localhost:1"))
    assert "no port is served" in printed(welcome(plan, None))
    assert "GPUs" not in printed(welcome(plan, None))


def test_the_beginning_says_which_gpus_are_none() -> None:
    """Whoever sees the page later has been told."""
    plan = DemoPlan(steps=5, fake_gpus=3)

    assert "3 without hardware: what they report is made up" in printed(welcome(plan, None))


def test_the_beginning_says_which_faults_will_not_come() -> None:
    """A run that is too short for some of the usual ones."""
    plan = DemoPlan(steps=400, faults=(Fault("nan", 40),), left_out=(Fault("slow-data", 430),))

    assert "left out, as the run ends before: slow-data@430" in printed(welcome(plan, None))
    assert "left out" not in printed(welcome(DemoPlan(steps=5), None))


def test_what_is_told_to_type_can_be_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program by the path that works here, where the shell does not know its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("sys.argv", [str(installed(tmp_path / "env" / "bin"))])

    end = printed(summary("Completed", exporter_after().snapshot, {}))
    why = printed(why_nan(ReportNote("loss", "NaN", "a b.json", True)))

    assert "env/bin/training-exporter metrics" in end
    assert "env/bin/training-exporter demo --help" in end
    assert "env/bin/training-exporter explain 'a b.json'" in why


def test_the_end_says_what_was_found() -> None:
    """By kind, with the steps, and the line to add to a training of one's own."""
    text = printed(summary("Completed 2 steps", exporter_after(2.5).snapshot, {"nan": [3, 9]}))

    assert "Completed 2 steps: loss 2.500." in text
    assert "3, 9" in text
    assert "callbacks=[PrometheusCallback()]" in text
    assert "No anomaly" in printed(summary("Stopped", exporter_after().snapshot, {}))
