# SPDX-License-Identifier: Apache-2.0
"""How well the detectors of each profile find what people marked in real training logs.

`python benchmarks/detection.py [--logs DIR]`. The logs are not part of this repository: without
them the program says so and ends well. DIR holds `labels.tsv` (id, kind, first and last row,
confidence) and `runs/<id>.csv.gz` (step, loss, grad_norm, learning_rate, eval_loss, extra).

How it counts: labels of high or medium confidence are to be found. An alarm is an episode of
findings at most 10 rows apart; it is right when it overlaps such a label. Labels of low confidence,
restarts, and what overlaps them count neither way. A row is one training row of the log, whatever
number of steps lies between two rows. Healthy runs are those that no label of the kind touches.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median

from training_exporter.detectors import (
    PROFILES,
    Detector,
    EvaluationDetector,
    Finding,
    build_detectors,
)
from training_exporter.signals import Evaluation, StepSignals

DEFAULT_LOGS = Path(__file__).resolve().parents[2] / "shared" / "logs"
EPISODE_GAP = 10
LABELS_OF = {
    "loss_spike": ("spike", "divergence"),
    "divergence": ("divergence",),
    "loss_plateau": ("plateau",),
    "gradient_explosion": ("explosion",),
    "gradient_vanishing": ("vanishing",),
    "non_finite": ("nan",),
}
"""Labels that each kind of anomaly is to find. The other kinds have none: any alarm is false."""
SECONDS_PER_UNIT = {"step_ms": 1e-3, "step_s": 1.0, "sec_per_kimg": 1.0}

Span = tuple[int, int]


@dataclass(frozen=True)
class Label:
    """What a person marked: a kind of event, its first and last row, and how sure they were."""

    kind: str
    first: int
    last: int
    confidence: str


@dataclass
class Run:
    """One log, in the order in which it was written, and its labels."""

    id: str
    events: list[StepSignals | Evaluation] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return sum(isinstance(event, StepSignals) for event in self.events)


@dataclass(frozen=True)
class Score:
    """How one detector did on one run."""

    wanted: int
    found: int
    right: int
    wrong: int
    delays: tuple[int, ...]
    healthy_rows: int


def read_runs(logs: Path) -> list[Run]:
    """Read all runs; those in `labels.tsv` only."""
    runs: dict[str, Run] = {}
    with (logs / "labels.tsv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            run = runs.setdefault(row["id"], Run(row["id"]))
            first, last = int(float(row["first_row"])), int(float(row["last_row"]))
            run.labels.append(Label(row["kind"], first, last, row["confidence"]))
    for run in runs.values():
        path = logs / "runs" / f"{run.id}.csv.gz"
        with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                run.events.extend(_events(row))
    return list(runs.values())


def _events(row: dict[str, str]) -> Iterable[StepSignals | Evaluation]:
    step = int(float(row["step"]))
    rate = _number(row["learning_rate"])
    if row["loss"]:
        yield StepSignals(
            step,
            0.0,
            loss=_number(row["loss"]),
            grad_norm=_number(row["grad_norm"]),
            learning_rates={} if rate is None else {"0": rate},
            step_seconds=_step_seconds(row["extra"]),
        )
    if row["eval_loss"]:
        yield Evaluation(step, 0.0, "eval", _number(row["eval_loss"]))


def _number(text: str) -> float | None:
    return float(text) if text else None


def _step_seconds(extra: str) -> float | None:
    """Seconds of a step, or of a fixed amount of work, where the log tells the one or the other."""
    name, _, text = extra.partition("=")
    try:
        value = float(text)
    except ValueError:
        return None
    if name in SECONDS_PER_UNIT:
        return value * SECONDS_PER_UNIT[name]
    return 1.0 / value if name == "throughput" and value > 0 else None


def alarm_rows(detector: Detector, run: Run) -> list[int]:
    """Rows of a run on which a detector found something."""
    found: list[int] = []
    row = -1
    for event in run.events:
        if isinstance(event, StepSignals):
            row += 1
            verdict = detector.observe(event)
        elif isinstance(detector, EvaluationDetector):
            verdict = detector.observe_evaluation(event)
        else:
            continue
        if isinstance(verdict, Finding):
            found.append(max(row, 0))
    return found


def episodes(rows: Iterable[int]) -> list[Span]:
    """Merge rows that are at most EPISODE_GAP apart."""
    spans: list[Span] = []
    for row in rows:
        if spans and row - spans[-1][1] <= EPISODE_GAP:
            spans[-1] = (spans[-1][0], row)
        else:
            spans.append((row, row))
    return spans


def score(alarms: Sequence[Span], run: Run, kinds: Sequence[str]) -> Score:
    """Compare the alarms of one run with its labels of the given kinds."""
    ours = [label for label in run.labels if label.kind in kinds]
    doubtful = [label for label in ours if label.confidence == "low"]
    doubtful += [label for label in run.labels if label.kind == "restart"]
    neutral = [(label.first, label.last) for label in doubtful]
    marked = [(label.first, label.last) for label in ours if label.confidence != "low"]
    wanted = [span for span in marked if not _touches(span, neutral)]
    neutral += [span for span in marked if span not in wanted]
    right = [alarm for alarm in alarms if _touches(alarm, wanted)]
    wrong = [alarm for alarm in alarms if not _touches(alarm, wanted + neutral)]
    delays = []
    for first, last in wanted:
        starts = [alarm[0] for alarm in right if _touches(alarm, [(first, last)])]
        if starts:
            delays.append(max(0, min(starts) - first))
    healthy = not ours and any(label.kind == "healthy" for label in run.labels)
    return Score(
        len(wanted), len(delays), len(right), len(wrong), tuple(delays), run.rows * healthy
    )


def _touches(span: Span, others: Iterable[Span]) -> bool:
    return any(span[0] <= last and first <= span[1] for first, last in others)


@dataclass(frozen=True)
class Summary:
    """The scores of one detector over all runs; None where there is nothing to divide by."""

    wanted: int
    recall: float | None
    run_recall: float | None
    precision: float | None
    run_precision: float | None
    false_per_thousand: float | None
    healthy_alarmed: str
    delay: float | None


def summarise(scores: Sequence[Score]) -> Summary:
    """Add up, and average over runs so that no single log outweighs the others."""
    with_labels = [s for s in scores if s.wanted]
    with_alarms = [s for s in scores if s.right + s.wrong]
    healthy = [s for s in scores if s.healthy_rows]
    delays = [delay for s in scores for delay in s.delays]
    rows = sum(s.healthy_rows for s in healthy)
    wanted = sum(s.wanted for s in scores)
    right = sum(s.right for s in scores)
    alarms = right + sum(s.wrong for s in scores)
    return Summary(
        wanted=wanted,
        recall=len(delays) / wanted if wanted else None,
        run_recall=fmean(s.found / s.wanted for s in with_labels) if with_labels else None,
        precision=right / alarms if alarms else None,
        run_precision=(
            fmean(s.right / (s.right + s.wrong) for s in with_alarms) if with_alarms else None
        ),
        false_per_thousand=1000 * sum(s.wrong for s in healthy) / rows if rows else None,
        healthy_alarmed=f"{sum(s.wrong > 0 for s in healthy)}/{len(healthy)}",
        delay=median(delays) if delays else None,
    )


def judge(detector: Detector, runs: Iterable[Run]) -> list[Score]:
    """Score one detector on every run, from a fresh start in each."""
    scores = []
    for run in runs:
        detector.load_state_dict({})
        alarms = episodes(alarm_rows(detector, run))
        scores.append(score(alarms, run, LABELS_OF.get(detector.kind, ())))
    return scores


def report(profile: str, runs: Sequence[Run]) -> None:
    """Print one table: a line per kind of anomaly."""
    print(f"\n{profile}")
    print(
        f"{'kind':<22}{'labels':>7}{'recall':>8}{'by run':>8}{'precision':>11}{'by run':>8}"
        f"{'false/1k':>10}{'healthy alarmed':>17}{'delay':>7}"
    )
    for detector in build_detectors(profile):
        s = summarise(judge(detector, runs))
        print(
            f"{detector.kind:<22}{s.wanted:>7}{_show(s.recall):>8}{_show(s.run_recall):>8}"
            f"{_show(s.precision):>11}{_show(s.run_precision):>8}"
            f"{_show(s.false_per_thousand, 3):>10}{s.healthy_alarmed:>17}{_show(s.delay, 0):>7}"
        )


def _show(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--logs", type=Path, default=DEFAULT_LOGS, help="folder of labelled logs")
    logs = parser.parse_args(arguments).logs
    if not (logs / "labels.tsv").is_file():
        print(f"No labelled logs in {logs}; give their folder with --logs. Nothing was measured.")
        return
    runs = read_runs(logs)
    print(f"{len(runs)} runs, {sum(run.rows for run in runs)} rows. Delay: median, in rows.")
    for profile in PROFILES:
        report(profile, runs)


if __name__ == "__main__":
    main(sys.argv[1:])
