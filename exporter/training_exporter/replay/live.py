# SPDX-License-Identifier: Apache-2.0
"""A past run played live on a page, so that dashboards and alerts can be tried without a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from time import sleep
from typing import Any

from training_exporter import catalog
from training_exporter.exporter import TrainingExporter
from training_exporter.replay.openmetrics import is_unix_time
from training_exporter.replay.playing import Playback
from training_exporter.replay.report import before_playing
from training_exporter.replay.rows import Event
from training_exporter.replay.trouble import ReplayError
from training_exporter.signals import StepSignals

LONGEST_WAIT = 60.0
"""Seconds: a run that stood still over night need not do so again."""


def play_live(
    events: Iterable[Event],
    exporter: TrainingExporter,
    *,
    speed: float,
    row_seconds: float,
    pause: Callable[[float], object] = sleep,
) -> None:
    """Let an exporter see a past run as if it went on now; ends with the run completed.

    Args:
        events: the run.
        exporter: shows it.
        speed: how many times faster than it was; infinity waits for nothing.
        row_seconds: time from row to row, where the log has no times.
        pause: waits so many seconds.
    """
    exporter.set_state(catalog.RUNNING)
    before: float | None = None
    for event in events:
        if isinstance(event, StepSignals):
            pause(_wait(before, event.timestamp, row_seconds) / speed)
            before = event.timestamp
            exporter.observe(replace(event, timestamp=exporter.clock()))
        else:
            results = {**event.metrics, "loss": event.loss}
            exporter.observe_evaluation(results, dataset=event.dataset, step=event.step)
    exporter.finish()


def _wait(before: float | None, now: float, row_seconds: float) -> float:
    """Seconds from one row to the next; the first comes at once."""
    if before is None:
        return 0.0
    passed = now - before if now and before else row_seconds
    return min(LONGEST_WAIT, max(0.0, passed))


def serve(
    playback: Playback,
    *,
    run: str,
    port: int | None,
    speed: float,
    row_seconds: float,
    say: Callable[[str], object],
) -> None:
    """Play a run on a page of its own, which stays after the end until Ctrl-C.

    Args:
        playback: the run, whose plan has one profile of detectors.
        run: its name there.
        port: port to serve on, None as configured.
        speed, row_seconds: as for `play_live`.
        say: tells the user what was taken for what, where to look, and what was wrong with the log.

    Raises:
        ReplayError: a variable of the environment that makes no sense, or nothing to play.
    """
    judge = playback.judges[0]
    chosen: dict[str, Any] = {} if port is None else {"port": port}
    try:
        exporter = TrainingExporter(
            run=run, profile=judge.profile, detectors=judge.options, gpu_metrics=False, **chosen
        )
    except ValueError as error:
        raise ReplayError(str(error)) from None
    try:
        for line in before_playing(playback):
            say(line)
        exporter.start()
        say(f"{run} is on {exporter.url or 'no page, as there is no port'}; Ctrl-C ends it.")
        _play(playback, exporter, speed, row_seconds)
        say("The run is over; its page stays until Ctrl-C.")
        until_interrupted()
    except KeyboardInterrupt:
        say("Stopped.")
    finally:
        for line in playback.troubles.lines():
            say(f"Note: {line}.")
        exporter.close()


def _play(playback: Playback, exporter: TrainingExporter, speed: float, row_seconds: float) -> None:
    try:
        play_live(_events(playback), exporter, speed=speed, row_seconds=row_seconds)
    except BaseException as error:
        exporter.finish(error)
        raise


def _events(playback: Playback) -> Iterator[Event]:
    """Its steps and evaluations, once; a time that can be none is absent.

    Raises:
        ReplayError: it is over and had no step.
    """
    rows = 0
    for event in playback.events():
        if isinstance(event, StepSignals):
            rows += 1
            if event.timestamp and not is_unix_time(event.timestamp):
                playback.troubles.note(
                    "time(|s) that (is|are) no Unix time in seconds and (was|were) left out",
                    f"step {event.step}",
                )
                yield replace(event, timestamp=0.0)
                continue
        yield event
    if not rows:
        raise ReplayError(f"nothing in {playback.path} can be replayed")


def until_interrupted() -> None:
    """Wait for Ctrl-C, which is raised."""
    while True:
        sleep(3600)
