# SPDX-License-Identifier: Apache-2.0
"""How well the detectors of each profile find what people marked in real training logs.

`python benchmarks/detection.py [--logs DIR]`. The logs are not part of this repository: without
them the program says so and ends well. DIR holds `labels.tsv` (id, kind, first and last row,
confidence) and `runs/<id>.csv.gz` (step, loss, grad_norm, learning_rate, eval_loss, extra).

This is `training-exporter backtest DIR --labels DIR/labels.tsv --windows rows`, but that these logs
say in `extra` how long a step took. How it counts is told in `training_exporter.replay.scoring`. A
row is one training row of the log, whatever number of steps lies between two rows.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import sys
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console

from training_exporter.detectors import PROFILES
from training_exporter.replay.backtest import ROWS, Trial, read_labels, summaries, table_of
from training_exporter.replay.judging import Judge
from training_exporter.replay.rows import Event
from training_exporter.replay.scoring import Label
from training_exporter.replay.trouble import Troubles
from training_exporter.signals import Evaluation, StepSignals

DEFAULT_LOGS = Path(__file__).resolve().parents[2] / "shared" / "logs"
SECONDS_PER_UNIT = {"step_ms": 1e-3, "step_s": 1.0, "sec_per_kimg": 1.0}


def judged(log: Path, labels: Iterable[Label]) -> Trial:
    """One run before both profiles."""
    judges = [Judge(profile, {}, Troubles()) for profile in PROFILES]
    with gzip.open(log, "rt", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            for event in _events(row):
                for judge in judges:
                    judge.observe(event)
    return Trial(list(labels), judges)


def _events(row: dict[str, str]) -> Iterable[Event]:
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


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--logs", type=Path, default=DEFAULT_LOGS, help="folder of labelled logs")
    logs = parser.parse_args(arguments).logs
    if not (logs / "labels.tsv").is_file():
        print(f"No labelled logs in {logs}; give their folder with --logs. Nothing was measured.")
        return
    labels = read_labels(logs / "labels.tsv")
    trials = [
        judged(logs / "runs" / f"{run}.csv.gz", marked) for run, marked in labels.by_run.items()
    ]
    rows = sum(trial.judges[0].rows for trial in trials)
    print(f"{len(trials)} runs, {rows} rows. Delay: median, in rows.\n")
    console = Console(width=120, highlight=False)
    for profile, by_kind in summaries(trials, ROWS).items():
        console.print(table_of(profile, by_kind, ROWS))


if __name__ == "__main__":
    main(sys.argv[1:])
