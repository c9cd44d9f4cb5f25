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
        labels: what a person marked.
        judges: the verdicts, one for each profile.
    """

    labels: Sequence[Label]
    judges: Sequence[Judge]


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
        first, last = (int(float(row[f"{end}_{unit[:-1]}"] or "")) for end in ("first", "last"))
    except (ValueError, OverflowError):
        raise ReplayError(f"{path}, line {line}: first and last must be whole numbers") from None
    if not row["id"]:
        raise ReplayError(f"{path}, line {line}: id must be the name of a log")
    kind, confidence = row["kind"] or "", row.get("confidence") or CONFIDENCES[0]
    _one_of(path, line, "kind", kind, KINDS)
    _one_of(path, line, "confidence", confidence, CONFIDENCES)
    return Label(kind, first, last, confidence)


def _one_of(path: Path, line: int, name: str, value: str, valid: Sequence[str]) -> None:
    if value not in valid:
        raise ReplayError(
            f"{path}, line {line}: {name} is one of {', '.join(valid)}, not {value!r}"
        )


def find_logs(folder: Path, runs: Iterable[str]) -> dict[str, Path]:
    """The log of each run: a file or folder below `folder` called like the run, whatever the
    file's extension."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        found.setdefault(path.name, path)
        if path.is_file():
            found.setdefault(path.name.partition(".")[0], path)
            found.setdefault(path.stem, path)
    return {run: found[run] for run in runs if run in found}


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
        ReplayError: none of them could.
    """
    logs = find_logs(folder, labels.by_run)
    trials, missing = [], []
    for run, marked in labels.by_run.items():
        progress(run)
        try:
            if run not in logs:
                raise ReplayError(f"no file or folder below {folder} is called {run}")
            playback = Playback(logs[run], plan)
            playback.play()
        except (ReplayError, OSError) as error:
            missing.append(f"{run}: {error}")
        else:
            trials.append(Trial(marked, playback.judges))
    if not trials:
        raise ReplayError(f"none of {len(missing)} runs can be judged; {missing[0]}")
    return trials, missing


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
