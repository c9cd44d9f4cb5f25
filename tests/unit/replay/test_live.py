# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from tests.unit.replay.logs import ROWS, rows, write_csv
from tests.unit.replay.test_command import run
from training_exporter import TrainingExporter, catalog
from training_exporter.replay import command, live
from training_exporter.replay.live import LONGEST_WAIT, play_live
from training_exporter.replay.playing import Plan, Playback
from training_exporter.signals import Evaluation, StepSignals

NOW = 1.9e9


@pytest.fixture
def exporter() -> TrainingExporter:
    return TrainingExporter(serve=False, clock=lambda: NOW)


def waits(exporter: TrainingExporter, *events: Any, speed: float = 1.0) -> list[float]:
    """How long was waited before each step."""
    told: list[float] = []
    play_live(events, exporter, speed=speed, row_seconds=3.0, pause=told.append)
    return told


def test_a_run_is_played_to_its_end(tmp_path: Path, exporter: TrainingExporter) -> None:
    """The page counts what a replay finds; alerts see it as a run that goes on now."""
    log = write_csv(tmp_path / "log.csv", rows())
    replayed = Playback(log, Plan())
    replayed.play()

    waits(exporter, *Playback(log, Plan()).events())

    found = {status.kind: status.total for status in exporter.snapshot.anomalies}
    assert found == replayed.judges[0].totals()
    assert exporter.status.state == catalog.COMPLETED
    signals = exporter.snapshot.signals
    assert signals is not None
    assert (signals.step, signals.timestamp) == (ROWS, NOW)


def test_the_pace_is_that_of_the_log(exporter: TrainingExporter) -> None:
    """So many times faster; time neither runs back nor stands still for a night."""
    times = [100.0, 104.0, 102.0, 100_000.0]

    told = waits(exporter, *[StepSignals(i, t, 1.0) for i, t in enumerate(times)], speed=2.0)

    assert told == [0.0, 2.0, 0.0, LONGEST_WAIT / 2]


def test_a_log_without_times_has_a_pace_that_is_given(exporter: TrainingExporter) -> None:
    """And evaluations come at once."""
    events = [StepSignals(1, 0.0, 1.0), Evaluation(1, 0.0, "wiki", 2.0), StepSignals(2, 0.0, 1.0)]

    assert waits(exporter, *events, speed=3.0) == [0.0, 1.0]
    assert exporter.snapshot.evaluations["wiki"].loss == 2.0


def test_an_evaluation_has_its_other_results_too(exporter: TrainingExporter) -> None:
    """Their values are series on the page, as those of a live run are."""
    waits(exporter, StepSignals(1, 0.0, 1.0), Evaluation(1, 0.0, "wiki", 2.0, {"accuracy": 0.5}))

    evaluation = exporter.snapshot.evaluations["wiki"]
    assert (evaluation.loss, evaluation.metrics) == (2.0, {"accuracy": 0.5})


def test_the_command_serves_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is still there once the run is over, until Ctrl-C."""
    log = write_csv(tmp_path / "log.csv", rows())
    pages: list[str] = []
    addresses: list[str] = []
    start = TrainingExporter.start

    def started(self: TrainingExporter) -> TrainingExporter:
        start(self)
        addresses.append(str(self.url))
        return self

    def look() -> None:
        with urlopen(f"{addresses[0]}/metrics") as answer:
            pages.append(answer.read().decode())
        raise KeyboardInterrupt

    monkeypatch.setattr(TrainingExporter, "start", started)
    monkeypatch.setattr(live, "until_interrupted", look)

    result = run("replay", log, "--serve", "--port", "0", "--speed", "1000000", "--run", "past")

    assert result.exit_code == 0, result.output
    assert addresses[0] in result.output
    assert 'training_anomalies_total{kind="loss_spike",rank="0",run="past"} 1.0' in pages[0]
    assert 'training_state{rank="0",run="past",state="completed"} 1.0' in pages[0]


def test_what_was_taken_is_told_before_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a wrong guess is seen while it is played."""
    log = write_csv(tmp_path / "log.csv", rows())
    monkeypatch.setattr(live, "until_interrupted", lambda: None)

    result = run("replay", log, "--serve", "--port", "0", "--speed", "inf")

    lines = result.stdout.splitlines()
    assert lines[0] == f"{log}: CSV."
    assert lines[1].startswith("Taken: step from 'step', loss from 'loss',")
    assert next(i for i, line in enumerate(lines) if line.startswith("log is on http")) > 1


def test_a_log_without_a_number_is_an_error(tmp_path: Path) -> None:
    """Also on a page: one with nothing on it would say that all is well."""
    log = tmp_path / "log.csv"
    log.write_text("step,loss\n1,abc\n2,abc\n")

    result = run("replay", log, "--serve", "--port", "0")

    assert result.exit_code == 2
    assert f"nothing in {log} can be replayed" in result.stderr
    assert "values that are no numbers" in result.stdout
    assert "stays until Ctrl-C" not in result.stdout


def test_times_in_milliseconds_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows come at the pace that is given, and it is told why."""
    told: list[float] = []
    monkeypatch.setattr(live.play_live, "__kwdefaults__", {"pause": told.append})
    monkeypatch.setattr(live, "until_interrupted", lambda: None)
    records = [{**row, "timestamp": 1.7e12 + 1000 * row["step"]} for row in rows()]
    log = write_csv(tmp_path / "log.csv", records)

    result = run("replay", log, "--serve", "--port", "0", "--row-seconds", "3")

    assert told == [0.0, *[3.0] * (ROWS - 1)]
    assert f"Note: {ROWS} times that are no Unix time in seconds" in result.stdout


def test_what_cannot_be_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is one line and exit code 2."""
    log = write_csv(tmp_path / "log.csv", rows())
    monkeypatch.setenv("TRAINING_EXPORTER_LINGER", "long")

    wrong = run("replay", log, "--serve")

    assert wrong.exit_code == 2
    assert "TRAINING_EXPORTER_LINGER must be a number" in wrong.stderr


def test_the_command_follows_a_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there is judged at once, and what comes is waited for until Ctrl-C; what was wrong is
    told at the end."""
    log = write_csv(tmp_path / "log.csv", rows())
    with log.open("a") as file:
        file.write("no row\n")
    seen: list[TrainingExporter] = []
    start = TrainingExporter.start

    def started(self: TrainingExporter) -> TrainingExporter:
        seen.append(self)
        return start(self)

    def nothing_more() -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(TrainingExporter, "start", started)
    monkeypatch.setattr(command, "more_soon", nothing_more)

    result = run("replay", log, "--follow", "--port", "0")

    assert result.exit_code == 0, result.output
    assert "Stopped.\nNote: 1 row with other than 4 columns" in result.output
    (exporter,) = seen
    assert exporter.snapshot.totals.steps == ROWS - 1
    assert exporter.status.state == catalog.STOPPED
    assert run("replay", log, "--follow", "--json").exit_code == 2


def test_waiting_for_a_log_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By Ctrl-C, as following it is."""

    def nothing_comes() -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "more_soon", nothing_comes)

    result = run("replay", tmp_path / "log.csv", "--follow", "--port", "0")

    assert result.exit_code == 0, result.output
    assert "Waiting: there is no" in result.output
    assert result.output.endswith("\nStopped.\n")
