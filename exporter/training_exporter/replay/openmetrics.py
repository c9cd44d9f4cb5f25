# SPDX-License-Identifier: Apache-2.0
"""A past run as OpenMetrics text with times, which Prometheus takes into its storage."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from math import inf, isfinite, isnan
from pathlib import Path
from shutil import copyfileobj
from tempfile import NamedTemporaryFile, TemporaryFile
from typing import IO

from training_exporter import catalog
from training_exporter.catalog import Metric
from training_exporter.replay.judging import Judge
from training_exporter.replay.rows import Event
from training_exporter.replay.times import unix_time
from training_exporter.replay.trouble import ReplayError, Troubles
from training_exporter.signals import Evaluation, StepSignals
from training_exporter.values import clean_text

AGAIN_AFTER = 60.0
"""Seconds after which an unchanged counter is written again: Prometheus forgets it after 300."""

_LATEST = 1e11
"""Times beyond it are milliseconds, which Prometheus takes for the year 55,000 without a word."""

_SAY_WHEN = "say when the run began, such as --start 2026-01-31"
NO_TIMES = f"no row of the log has a time: {_SAY_WHEN}"

_FAMILIES = (
    catalog.STEP,
    catalog.TRAINING_LOSS,
    catalog.GRADIENT_NORM,
    catalog.LEARNING_RATE,
    catalog.EVAL_LOSS,
    catalog.ANOMALIES,
)


class Backfill:
    """Writes what a run's page would have shown, row by row.

    The samples of a series must follow on each other in the file, so they are gathered in temporary
    files first, and memory does not grow with the run. Prometheus silently drops a sample that is
    not after the one before it, so such rows and evaluations are told and left out.

    Args:
        judge: the verdict on the run.
        run: label `run`.
        start: Unix time of the first row, from which all times are reckoned; None takes those of
            the log.
        row_seconds: time from row to row, for reckoned times.
        stride: steps from row to row.
        troubles: takes what is wrong.
    """

    def __init__(
        self,
        judge: Judge,
        run: str,
        *,
        start: float | None,
        row_seconds: float,
        stride: int,
        troubles: Troubles,
    ) -> None:
        self._judge = judge
        self._labels = f'run="{_escaped(run)}",rank="0"'
        self._start = start
        self._row_seconds = row_seconds
        self._stride = stride
        self._troubles = troubles
        self._last_step = 0
        self._last_time = -inf
        self._last_evaluated: dict[str, float] = {}
        self._counted: Sequence[int] = ()
        self._counted_at = -inf
        self._stack = ExitStack()
        self._series: dict[str, dict[str, IO[str]]] = {metric.name: {} for metric in _FAMILIES}

    def __enter__(self) -> Backfill:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def note(self, event: Event) -> None:
        """Take in a step or an evaluation that was judged.

        Raises:
            ReplayError: its time is none.
        """
        time = self._time(event)
        if time is None:
            return
        if not isinstance(event, StepSignals):
            self._evaluation(event, time)
            return
        self._last_step = event.step
        if time <= self._last_time:
            self._troubles.note(
                "row(|s) whose time is not after the last one, which (is|are) left out"
            )
            return
        self._last_time = time
        self._sample(catalog.STEP, "", float(event.step), time)
        if event.loss is not None:
            self._sample(catalog.TRAINING_LOSS, "", event.loss, time)
        if event.grad_norm is not None:
            self._sample(catalog.GRADIENT_NORM, "", event.grad_norm, time)
        for group, rate in event.learning_rates.items():
            self._sample(catalog.LEARNING_RATE, f',group="{group}"', rate, time)
        self._count(time)

    def _evaluation(self, event: Evaluation, time: float) -> None:
        if event.loss is None:
            return
        if time <= self._last_evaluated.get(event.dataset, -inf):
            self._troubles.note(
                "evaluation(|s) whose time is not after the last one, which (is|are) left out",
                f"step {event.step}",
            )
            return
        self._last_evaluated[event.dataset] = time
        self._sample(catalog.EVAL_LOSS, f',dataset="{_escaped(event.dataset)}"', event.loss, time)

    def _time(self, event: Event) -> float | None:
        """In milliseconds, which is what Prometheus keeps, but as seconds; None where there is
        none."""
        if self._start is not None:
            if event.timestamp:
                self._troubles.note(
                    "time(|s) in the log that (is|are) not used, as --start is given"
                )
            return self._reckoned(event, self._start)
        if not event.timestamp:
            what = "row" if isinstance(event, StepSignals) else "evaluation"
            self._troubles.note(
                f"{what}(|s) without a time, which (is|are) left out", f"step {event.step}"
            )
            return None
        if not is_unix_time(event.timestamp):
            raise ReplayError(
                f"a time in the log is no Unix time in seconds: {event.timestamp:.16g}; {_SAY_WHEN}"
            )
        return round(event.timestamp, 3)

    def _reckoned(self, event: Event, start: float) -> float:
        """An evaluation is between two rows where its step is; before the first row it is as if
        there had been one of step 0."""
        rows = self._judge.rows - 1.0
        if not isinstance(event, StepSignals):
            rows += min(1.0, max(0.0, (event.step - self._last_step) / self._stride))
        time = round(start + rows * self._row_seconds, 3)
        if not is_unix_time(time):
            raise ReplayError(
                f"--start and --row-seconds {self._row_seconds:g} lead to {time:g}, which is no"
                " Unix time in seconds"
            )
        return time

    def _count(self, time: float) -> None:
        statuses = self._judge.monitor.anomalies
        totals = [status.total for status in statuses]
        if totals == self._counted and time < self._counted_at + AGAIN_AFTER:
            return
        self._counted, self._counted_at = totals, time
        for status in statuses:
            kind = f',kind="{status.kind}"'
            self._sample(catalog.ANOMALIES, kind, float(status.total), time)

    def _sample(self, metric: Metric, labels: str, value: float, time: float) -> None:
        series = self._series[metric.name]
        if labels not in series:
            samples = TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - the stack closes it
            series[labels] = self._stack.enter_context(samples)
        name = f"{metric.name}{{{self._labels}{labels}}}"
        series[labels].write(f"{name} {_number(value)} {time:.3f}\n")

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all; where it is a link, what that leads to.

        Raises:
            ReplayError: no row had a time.
            OSError: no permission, disk full, no such folder.
        """
        if self._last_time == -inf:
            raise ReplayError(NO_TIMES)
        path = path.resolve()
        with NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as draft:
            try:
                for metric in _FAMILIES:
                    self._append(metric, draft)
                draft.write("# EOF\n")
                draft.close()
                Path(draft.name).chmod(0o644)  # Prometheus may be another user
                Path(draft.name).replace(path)
            except BaseException:
                Path(draft.name).unlink(missing_ok=True)
                raise

    def _append(self, metric: Metric, file: IO[str]) -> None:
        series = self._series[metric.name]
        if not series:
            return
        family = metric.name.removesuffix("_total") if metric.kind == "counter" else metric.name
        file.write(f"# TYPE {family} {metric.kind}\n# HELP {family} {metric.help}\n")
        for samples in series.values():
            samples.seek(0)
            copyfileobj(samples, file)


def parse_start(text: str) -> float:
    """Unix time of a date such as 2026-01-31T10:00, UTC unless it says another zone, or of a number
    of seconds.

    Raises:
        ReplayError: it is neither.
    """
    seconds = unix_time(text)
    if seconds is None or not is_unix_time(seconds):
        raise ReplayError(
            f"--start is a date such as 2026-01-31T10:00 or Unix time in seconds, not {text}"
        )
    return seconds


def is_unix_time(seconds: float) -> bool:
    """Whether it can be one; what is too large is in milliseconds."""
    return 0 < seconds < _LATEST


def _number(value: float) -> str:
    if isfinite(value):
        return repr(value)
    return "NaN" if isnan(value) else "+Inf" if value > 0 else "-Inf"


def _escaped(text: str) -> str:
    return clean_text(text).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
