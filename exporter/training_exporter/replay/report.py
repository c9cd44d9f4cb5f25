# SPDX-License-Identifier: Apache-2.0
"""What a replay has to say, to a person and to a program."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from math import isfinite
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from training_exporter.catalog import CLIPPING_EXCESS
from training_exporter.replay.columns import STEP
from training_exporter.replay.judging import Episode, Judge
from training_exporter.replay.playing import Playback
from training_exporter.replay.settings import paste_lines
from training_exporter.replay.windows import IN_STEPS, STEPPED

SHOWN = 100
"""Anomalies in the table; JSON has more."""
NAMED = 8
"""Names in a line; JSON has all."""


def for_person(playback: Playback) -> list[RenderableType]:
    """What was taken for what, the anomalies, and a summary; lines are not to be wrapped."""
    parts: list[RenderableType] = [Text(line) for line in _introduction(playback)]
    parts += [Text(f"Note: {line}.", style="yellow") for line in playback.troubles.lines()]
    parts += _anomalies(playback)
    for judge in playback.judges:
        parts += [Text(line) for line in _summary(judge, playback)]
    profiles = [judge.profile for judge in playback.judges]
    lines = paste_lines(profiles, playback.plan.options)
    parts += [Text(line, style="cyan") for line in lines]
    return parts


def for_program(playback: Playback) -> dict[str, Any]:
    """The same as values that any JSON can hold: NaN and infinity are texts."""
    course = playback.course
    report = {
        "source": str(playback.path),
        "files": [str(path) for path in playback.source.paths],
        "format": playback.source.format.name,
        "signals": playback.columns.names,
        "evaluations_of": playback.columns.evaluations,
        "not_taken": _not_taken(playback),
        "steps_per_row": playback.stride,
        **asdict(course),
        "notes": playback.troubles.lines(),
        "profiles": {
            judge.profile: _judgement(judge, playback.stride) for judge in playback.judges
        },
    }
    return {name: _portable(value) for name, value in report.items()}


def _judgement(judge: Judge, stride: int | None) -> dict[str, Any]:
    return {
        "options": judge.options,
        "counts": judge.totals(),
        "not_judged": judge.never_ready(),
        "anomalies": [_episode(episode, stride) for episode in judge.episodes],
    }


def _episode(episode: Episode, stride: int | None) -> dict[str, Any]:
    begun = episode.begun
    return {
        "kind": begun.kind,
        "step": begun.step,
        "time": begun.timestamp or None,
        "value": _portable(begun.value),
        "threshold": _portable(begun.threshold),
        "last_step": episode.last_step,
        "rows": episode.last_row - episode.first_row + 1,
        "steps": _steps(episode, stride),
        "over": episode.over,
    }


def _portable(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _portable(inner) for name, inner in value.items()}
    return str(value) if isinstance(value, float) and not isfinite(value) else value


def _steps(episode: Episode, stride: int | None) -> int:
    """How long an anomaly lasted: to the end of its last row, whatever the step numbers did."""
    return (episode.last_row - episode.first_row + 1) * (stride or 1)


def _introduction(playback: Playback) -> Iterator[str]:
    course = playback.course
    yield (
        f"{playback.path}: {playback.source.format.name}{_files(playback)},"
        f" {counted(course.rows, 'row')},"
        f" steps {course.first_step:,} to {course.last_step:,},"
        f" {counted(course.evaluations, 'evaluation')}."
    )
    yield from _guesses(playback)
    losses = [] if course.loss is None else [f"last {course.loss:.6g}"]
    if course.best_loss is not None:
        losses.append(f"lowest {course.best_loss:.6g} at step {course.best_step:,}")
    losses += [f"{name} {loss:.6g}" for name, loss in course.eval_losses.items()]
    if losses:
        yield f"Loss: {', '.join(losses)}."


def before_playing(playback: Playback) -> Iterator[str]:
    """What is known of a log by its beginning, so that a wrong guess is seen at once."""
    yield f"{playback.path}: {playback.source.format.name}{_files(playback)}."
    yield from _guesses(playback)


def _guesses(playback: Playback) -> Iterator[str]:
    """What was taken for what, and how far rows are apart."""
    stride = playback.stride
    taken = [f"{signal} from {name!r}" for signal, name in playback.columns.names.items()]
    taken += [
        f"loss of {data} from {name!r}" for name, data in playback.columns.evaluations.items()
    ]
    yield f"Taken: {', '.join(taken)}."
    others = _not_taken(playback)
    if others:
        yield f"Not taken: {listed([repr(name) for name in others])}; --map SIGNAL=NAME takes one."
    if STEP not in playback.columns.names:
        yield "No step is logged: rows are counted instead."
    elif stride is not None and stride > 1:
        yield f"A row every {stride:,} steps. Detectors see rows; {_windows(playback)}"


def _files(playback: Playback) -> str:
    """Where in a folder that was asked for the run was found, and in how many files it lies."""
    paths = playback.source.paths
    files = f" in {len(paths)} files" if len(paths) > 1 else ""
    where = os.path.relpath(paths[0].parent if files else paths[0], playback.path)
    return files if where == os.curdir else f"{files} {'of' if files else 'in'} {where}"


def _not_taken(playback: Playback) -> list[str]:
    """Names of numbers that the log has and that are no signal."""
    columns = playback.columns
    taken = {*columns.names.values(), *columns.evaluations}
    return [name for name in columns.seen if name not in taken]


def _windows(playback: Playback) -> str:
    for judge in playback.judges:
        if judge.profile == STEPPED and playback.window_stride > 1:
            scaled = [
                f"{kind}.{name} {judge.options[kind][name]:g}" for kind, name in IN_STEPS.items()
            ]
            return f"windows of {STEPPED}, which are in steps, are in rows {', '.join(scaled)}."
    return "their windows are in rows."


def _anomalies(playback: Playback) -> list[RenderableType]:
    found = _by_step(playback)
    if not found:
        return [Text("No anomaly was found.", style="bold")]
    table = Table(box=box.SIMPLE_HEAD)
    several = len(playback.judges) > 1
    table.add_column("Step", justify="right", no_wrap=True)
    table.add_column("Anomaly", style="yellow", no_wrap=True)
    for name in ("Value", "Threshold"):
        table.add_column(name, justify="right", no_wrap=True)
    # What is made of words is wrapped in a narrow terminal, so that nothing is cut off.
    table.add_column("Lasted", overflow="fold")
    if several:
        table.add_column("Found by", overflow="fold")
    for cells, profiles in found[:SHOWN]:
        table.add_row(*cells, *([" and ".join(profiles)] if several else []))
    rest = len(found) - SHOWN
    more = [Text(f"... and {rest:,} more: --json names them")] if rest > 0 else []
    return [table, *more]


def _by_step(playback: Playback) -> list[tuple[tuple[str, ...], list[str]]]:
    """The anomalies in the order of the log, as they are shown, each with the profiles of which all
    that is shown is true."""
    found: dict[tuple[int, str, tuple[str, ...]], list[str]] = {}
    for judge in playback.judges:
        for episode in judge.episodes:
            cells = _cells(episode, playback.stride)
            key = (episode.first_row, episode.begun.kind, cells)
            found.setdefault(key, []).append(judge.profile)
    in_order = sorted(found, key=lambda key: key[:2])
    return [(key[2], found[key]) for key in in_order]


def _cells(episode: Episode, stride: int | None) -> tuple[str, ...]:
    begun = episode.begun
    lasted = counted(_steps(episode, stride), "step") + ("" if episode.over else ", to the end")
    threshold = f"{begun.threshold:.4g}" if isfinite(begun.threshold) else ""
    return f"{begun.step:,}", begun.kind, f"{begun.value:.4g}", threshold, lasted


def _summary(judge: Judge, playback: Playback) -> Iterator[str]:
    counts = [f"{count:,} {kind}" for kind, count in judge.totals().items() if count]
    yield f"{judge.profile}: {', '.join(counts) or 'nothing'}."
    unjudged = judge.never_ready()
    if unjudged:
        hint = ""
        if CLIPPING_EXCESS in unjudged and _lacks_threshold(playback):
            hint = f" (for {CLIPPING_EXCESS} add --clip NORM)"
        kinds = ", ".join(unjudged)
        yield f"  The log is too short for, or lacks what is needed by: {kinds}{hint}."


def _lacks_threshold(playback: Playback) -> bool:
    """Whether it would help to say above which norm gradients were clipped."""
    names = playback.columns.names
    return (
        "grad_norm" in names
        and "clip_threshold" not in names
        and playback.plan.clip_threshold is None
    )


def counted(count: int, what: str) -> str:
    """So many of something, in words."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def listed(names: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    more = f", and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
