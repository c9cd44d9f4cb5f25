# SPDX-License-Identifier: Apache-2.0
"""The detectors before many past runs in which a person has marked what went wrong."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from rich import box
from rich.table import Table

from training_exporter.catalog import ANOMALY_KINDS
from training_exporter.replay.judging import Judge
from training_exporter.replay.playing import Plan, Playback
from training_exporter.replay.report import listed
from training_exporter.replay.rows import Event
from training_exporter.replay.scoring import (
    HEALTHY,
    LABELS_OF,
    LOW,
    Label,
    Score,
    Span,
    Summary,
    score,
    summarise,
)
from training_exporter.replay.trouble import ReplayError

ROWS, STEPS = "rows", "steps"
KINDS = (*ANOMALY_KINDS, *chain(*LABELS_OF.values()), HEALTHY)
"""What a label may say."""
CONFIDENCES = ("high", "medium", LOW)


@dataclass(frozen=True)
class Trial:
    """One run, judged.

    Attributes:
        labels: what a person marked in it.
        judges: the verdicts, one for each profile.
        notes: what is wrong with its log or its labels, a line for each.
    """

    labels: Sequence[Label]
    judges: Sequence[Judge]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Labels:
    """What a person marked, by run.

    Attributes:
        unit: what beginnings and ends are given in, ROWS of the log or STEPS.
    """

    unit: str
    by_run: Mapping[str, Sequence[Label]]


def read_labels(path: Path) -> Labels:
    """Read a table with tabs: id, kind, and first_row and last_row, else first_step and last_step;
    confidence, if there is such a column, is high, medium or low.

    Raises:
        ReplayError: not such a table, saying what is missing.
    """
    by_run: dict[str, list[Label]] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file, delimiter="\t")
            unit = _unit(path, table.fieldnames or ())
            for row in table:
                label = _label(path, table.line_num, row, unit)
                by_run.setdefault(row["id"], []).append(label)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ReplayError(f"cannot read the labels in {path}: {error}") from None
    if not by_run:
        raise ReplayError(f"{path} has no label")
    return Labels(unit, by_run)


def _unit(path: Path, names: Sequence[str]) -> str:
    for unit in (ROWS, STEPS):
        if {"id", "kind", f"first_{unit[:-1]}", f"last_{unit[:-1]}"} <= set(names):
            return unit
    raise ReplayError(
        f"{path} must have the columns id, kind, first_row and last_row (or first_step and"
        f" last_step), separated by tabs; it has {', '.join(names) or 'none'}"
    )


def _label(path: Path, line: int, row: Mapping[str, str | None], unit: str) -> Label:
    try:
        first, last = (_whole(row[f"{end}_{unit[:-1]}"] or "") for end in ("first", "last"))
    except ValueError:
        raise ReplayError(f"{path}, line {line}: first and last must be whole numbers") from None
    if not 0 <= first <= last:
        raise ReplayError(
            f"{path}, line {line}: first must be 0 or more and last no less than first,"
            f" not {first} and {last}"
        )
    if not row["id"]:
        raise ReplayError(f"{path}, line {line}: id must be the name of a log")
    kind, confidence = row["kind"] or "", row.get("confidence") or CONFIDENCES[0]
    _one_of(path, line, "kind", kind, KINDS)
    _one_of(path, line, "confidence", confidence, CONFIDENCES)
    return Label(kind, first, last, confidence)


def _whole(text: str) -> int:
    """A whole number, which a spreadsheet may have written as 140.0.

    Raises:
        ValueError: it is none.
    """
    number = float(text)
    if not number.is_integer():
        raise ValueError(text)
    return int(number)


def _one_of(path: Path, line: int, name: str, value: str, valid: Sequence[str]) -> None:
    if value not in valid:
        raise ReplayError(
            f"{path}, line {line}: {name} is one of {', '.join(valid)}, not {value!r}"
        )


def find_logs(folder: Path, runs: Iterable[str]) -> dict[str, list[Path]]:
    """What may be the log of each run: the files and folders below `folder` that are called so,
    files with or without their extension."""
    found: dict[str, list[Path]] = {run: [] for run in runs}
    for path in sorted(folder.rglob("*")):
        for name in _names_of(path):
            if name in found:
                found[name].append(path)
    return found


def _names_of(path: Path) -> set[str]:
    """What a label may call it; the extension of an archive comes after another."""
    if path.is_dir():
        return {path.name}
    unpacked = path.with_suffix("") if path.suffix == ".gz" else path
    return {path.name, unpacked.name, unpacked.stem}


def play_all(
    folder: Path,
    labels: Labels,
    plan: Plan,
    *,
    progress: Callable[[str], object] = lambda _: None,
) -> tuple[list[Trial], list[str]]:
    """Judge every run that has labels.

    Args:
        folder: where the logs are.
        labels: theirs.
        plan: how.
        progress: is told the name of each run.

    Returns:
        the runs, and a line for each that could not be judged.

    Raises:
        ReplayError: there is no such folder, or none of them could.
    """
    if not folder.is_dir():
        raise ReplayError(f"there is no folder {folder}")
    logs = find_logs(folder, labels.by_run)
    trials, missing = [], []
    for run in labels.by_run:
        progress(run)
        try:
            if not logs[run]:
                raise ReplayError(f"no file or folder below {folder} is called {run}")
            playback = _only_readable(folder, logs[run], plan)
            trials.append(_trial(run, playback, labels))
        except (ReplayError, OSError) as error:
            missing.append(f"{run}: {error}")
    if not trials:
        raise ReplayError(f"none of {len(missing)} runs can be judged; {missing[0]}")
    return trials, missing


def _only_readable(folder: Path, paths: Iterable[Path], plan: Plan) -> Playback:
    """The one log among what is called like a run, such as a table beside a run's settings.

    Raises:
        ReplayError: none of them can be replayed, or it cannot be known which is meant.
    """
    readable: dict[Path, Playback] = {}
    wrong = []
    for path in paths:
        if not readable.keys().isdisjoint(path.parents):
            continue  # the folder in which it lies is called so, too, and has a log
        try:
            readable[path] = Playback(path, plan)
        except (ReplayError, OSError) as error:
            wrong.append(f"{path.relative_to(folder)}: {error}")
    if not readable:
        raise ReplayError("; ".join(wrong))
    if len(readable) > 1:
        names = listed([str(path.relative_to(folder)) for path in readable])
        raise ReplayError(f"{len(readable)} logs are called so, expected one: {names}")
    return next(iter(readable.values()))


def _trial(run: str, playback: Playback, labels: Labels) -> Trial:
    """Judge a run; what is marked beyond its end could not be found, and is left out.

    Raises:
        ReplayError: it has no row that can be judged.
    """
    end = _play_to_end(playback, labels.unit)
    inside = []
    for label in labels.by_run[run]:
        place = f"{labels.unit} {label.first:,} to {label.last:,}"
        its_end = f"its end at {labels.unit[:-1]} {end:,}"
        if label.first > end:
            playback.troubles.note(f"label(|s) beyond {its_end}, which (is|are) not counted", place)
            continue
        if label.last > end:
            playback.troubles.note(f"label(|s) that (goes|go) on beyond {its_end}", place)
        inside.append(label)
    notes = [f"{run}: {line}" for line in playback.troubles.lines()]
    return Trial(inside, playback.judges, notes)


def _play_to_end(playback: Playback, unit: str) -> int:
    """Judge it, and return its last row, or the last step for which one of its rows stands."""
    if unit == ROWS:
        playback.play()
        return playback.course.rows - 1
    farthest = 0

    def note(event: Event) -> None:
        nonlocal farthest
        farthest = max(farthest, event.step)

    playback.play(judged=note)
    return farthest + (playback.stride or 1) - 1


def summaries(trials: Sequence[Trial], unit: str) -> dict[str, dict[str, Summary]]:
    """By profile and kind, how well they did."""
    found: dict[str, dict[str, Summary]] = {}
    for place, first in enumerate(trials[0].judges):
        found[first.profile] = {
            kind: summarise([_scored(trial, place, kind, unit) for trial in trials])
            for kind in first.totals()
        }
    return found


def _scored(trial: Trial, place: int, kind: str, unit: str) -> Score:
    judge = trial.judges[place]
    spans: list[Span] = [
        (each.first_row, each.last_row) if unit == ROWS else (each.begun.step, each.last_step)
        for each in judge.episodes
        if each.begun.kind == kind
    ]
    return score(spans, judge.rows, trial.labels, kind)


def table_of(profile: str, by_kind: Mapping[str, Summary], unit: str) -> Table:
    """A line for each kind of anomaly."""
    table = Table(
        title=f"{profile}; recall and precision over all labels/mean of the runs",
        title_justify="left", title_style="bold", box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )  # fmt: skip
    table.add_column("Kind", style="yellow", no_wrap=True)
    for name in (
        "Labels", "Recall", "Precision", "False\nper 1k", "Healthy\nalarmed", f"Delay,\n{unit}",
    ):  # fmt: skip
        table.add_column(name, justify="right", no_wrap=True)
    for kind, s in by_kind.items():
        table.add_row(
            kind,
            str(s.wanted),
            _pair(s.recall, s.run_recall),
            _pair(s.precision, s.run_precision),
            _shown(s.false_per_thousand, 3),
            f"{s.healthy_alarmed}/{s.healthy_runs}",
            _shown(s.delay, 0),
        )
    return table


def _pair(of_all: float | None, of_runs: float | None) -> str:
    return "" if of_all is None else f"{_shown(of_all)}/{_shown(of_runs)}"


def _shown(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"
