# SPDX-License-Identifier: Apache-2.0
"""From records to what a monitor takes: steps and evaluations."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from math import inf, isfinite, nan
from statistics import median
from typing import Any

from training_exporter.replay.columns import JUDGED, STEP, TIMESTAMP, Columns
from training_exporter.replay.text_logs import Record
from training_exporter.replay.times import unix_time
from training_exporter.replay.trouble import Troubles
from training_exporter.signals import Evaluation, StepSignals

Event = StepSignals | Evaluation

_FIRST, _FARTHEST = -(1 << 62), 1 << 62
"""Steps beyond them are none, but what a damage made of them."""
_OTHERS = (
    "epoch", "step_seconds", "loss_scale", "clip_threshold", "memory_allocated_bytes",
)  # fmt: skip
_IN_TENSOR = re.compile(r"tensor\(\[?([^],()]+)\]?(?:,.*)?\)")
"""What becomes of a tensor that is written as a text."""
_NAN_IN_C = re.compile(r"[+-]?(?:nan\(.*\)|1\.#(?:QNAN|SNAN|IND)\w*)", re.IGNORECASE)
_INF_IN_C = re.compile(r"([+-]?)1\.#INF\w*", re.IGNORECASE)


class Rows:
    """Makes steps and evaluations of records. What cannot be read is noted and left out.

    Args:
        columns: which value is which signal.
        troubles: takes what is wrong.
        clip_threshold: norm above which gradients were clipped, where the log does not say it.
    """

    def __init__(
        self, columns: Columns, troubles: Troubles, clip_threshold: float | None = None
    ) -> None:
        self._columns = columns
        self._troubles = troubles
        self._clip_threshold = clip_threshold
        self._last: int | None = None
        self._row = 0

    def events(self, records: Iterable[Record]) -> Iterator[Event]:
        """The steps in the order of the log, each before the evaluations that followed on it."""
        for record in self._together(records):
            step = self._step(record)
            if step is not None:
                yield from self._events_of(step, record)

    def _together(self, records: Iterable[Record]) -> Iterator[Record]:
        """Records of one step as one: Lightning and W&B log its values one by one. An empty record
        says that nothing more belongs to the last one."""
        columns = self._columns
        pending: Record = {}
        learn, names = columns.learn, columns.names
        time = names.get(TIMESTAMP, "")
        for record in records:
            learn(record)
            if pending:
                name = names.get(STEP)
                step = record.get(name) if name is not None else None
                if step is not None and step == pending.get(name) and self._fits(pending, record):  # type: ignore[arg-type]  # a name, as there is a step
                    begun = pending.get(time)
                    pending.update(record)
                    if begun is not None:  # a step is as old as the first that was logged of it
                        pending[time] = begun
                    continue
                yield pending
            pending = record
        if pending:
            yield pending

    def _fits(self, before: Record, after: Record) -> bool:
        """Whether nothing that is judged is in both."""
        judged = [self._columns.names.get(signal) for signal in JUDGED]
        return not any(
            name in before and name in after for name in (*judged, *self._columns.evaluations)
        )

    def _step(self, record: Record) -> int | None:
        """The step of a record; that of the last one where it says none and is an evaluation."""
        name = self._columns.names.get(STEP)
        if name is None:
            self._row += any(self._columns.names.get(signal) in record for signal in JUDGED)
            return max(1, self._row)
        value = record.get(name)
        if type(value) is int and _FIRST < value < _FARTHEST:
            return value
        number = self._number(value)
        if number is not None and _FIRST < number < _FARTHEST:
            if number != (step := int(number)):
                self._troubles.note(
                    "step(|s) that (is|are) no whole number(|s) and (was|were) cut", repr(value)
                )
            return step
        if any(each in record for each in self._columns.evaluations) and self._last is not None:
            return self._last
        self._troubles.note("record(|s) without a step that (was|were) left out")
        return None

    def _events_of(self, step: int, record: Record) -> Iterator[Event]:
        names, number = self._columns.names, self._number
        get = record.get
        timestamp = self._time(get(names.get(TIMESTAMP, "")))
        loss, norm = number(get(names.get("loss", ""))), number(get(names.get("grad_norm", "")))
        if loss is not None or norm is not None:
            self._watch_order(step)
            rate = number(get(names.get("learning_rate", "")))
            yield StepSignals(
                step,
                timestamp,
                loss,
                norm,
                learning_rates={} if rate is None else {"0": rate},
                **self._others(record, names),
            )
        elif record.get(name := names.get("loss", ""), 0) is None:  # JSON may have it for a NaN
            self._troubles.note(
                f"row(|s) with null for {name!r} that (was|were) left out", f"step {step}"
            )
        for name, dataset in self._columns.evaluations.items():
            evaluated = number(get(name))
            if evaluated is not None:
                yield Evaluation(step, timestamp, dataset, evaluated, self._metrics(name, record))

    def _metrics(self, loss: str, record: Record) -> dict[str, float]:
        """The other results of an evaluation: what is called as its loss is, but for that word."""
        if not loss.lower().endswith("loss"):
            return {}
        prefix, losses = loss[: -len("loss")], self._columns.evaluations
        return {
            name.removeprefix(prefix): found
            for name, value in record.items()
            if name.startswith(prefix) and name not in losses
            if (found := self._number(value)) is not None
        }

    def _others(self, record: Record, names: Mapping[str, str]) -> dict[str, Any]:
        found: dict[str, Any] = {"clip_threshold": self._clip_threshold}
        for signal in _OTHERS:
            name = names.get(signal)
            if name is not None:
                value = self._number(record.get(name))
                if value is not None:
                    found[signal] = value
        return found

    def _watch_order(self, step: int) -> None:
        last, self._last = self._last, step
        if last is not None and step <= last:
            what = "repeat(s|)" if step == last else "go(es|) back"
            self._troubles.note(f"step(|s) that {what}, which `restart` judges", f"step {step}")

    def _time(self, value: object) -> float:
        """Unix time, 0 where there is none. It may be a date."""
        if type(value) is str and (moment := unix_time(value)) is not None:
            value = moment
        time = self._number(value)
        return time if time is not None and isfinite(time) else 0.0

    def _number(self, value: object) -> float | None:
        """A value as a float, None where it is none: absent is absent."""
        if type(value) is float:
            return value
        if value is None or type(value) is bool:
            return None
        try:
            return float(value)  # type: ignore[arg-type]  # else it raises
        except (ValueError, TypeError, OverflowError):
            number = _unusual_number(value) if isinstance(value, str) else None
            if number is None:
                where = repr(value)[:40]
                self._troubles.note(
                    "value(|s) that (is|are) no number(|s) and (was|were) left out", where
                )
            return number


def _unusual_number(text: str) -> float | None:
    """A number as C's printf or a tensor's repr writes it."""
    if tensor := _IN_TENSOR.fullmatch(text.strip()):
        text = tensor[1]
    text = text.strip()
    if _NAN_IN_C.fullmatch(text):
        return nan
    if infinite := _INF_IN_C.fullmatch(text):
        return -inf if infinite[1] == "-" else inf
    try:
        return float(text)
    except ValueError:
        return None


def usual_stride(events: Iterable[Event]) -> int | None:
    """Optimiser steps from one row to the next: the median, None where there are no two rows."""
    steps = [event.step for event in events if isinstance(event, StepSignals)]
    ahead = [after - before for before, after in pairwise(steps)]
    forward = [stride for stride in ahead if stride > 0]
    return round(median(forward)) if forward else None
