# SPDX-License-Identifier: Apache-2.0
"""A black box in words: a page of Markdown for a person."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from training_exporter import catalog
from training_exporter.forensics.report import shown
from training_exporter.forensics.text import code, moment
from training_exporter.lifecycle.blackbox_reader import Box, ago, failed_with
from training_exporter.signals import StepSignals
from training_exporter.snapshot import Anomaly

ROWS: Final = 20
"""Steps in the table; up to 200 are in the file."""


def described(box: Box, *, now: float, rows: int = ROWS) -> str:
    """A black box as Markdown.

    Args:
        box: what was in it.
        now: Unix time.
        rows: how many of the last steps to show, of at most 200.
    """
    steps = box.steps[-rows:] if rows else ()
    blocks = [
        f"# Run {code(box.run)}, rank {box.rank}: {_end(box)}",
        f"Last written {moment(box.written)}, {ago(box, now)}.",
        _bullets(_process(box)),
        "## Counters",
        _bullets(_counters(box)),
        "## Anomalies",
        _bullets(_anomalies(box.anomalies)) or "None.",
        f"## The last {len(steps)} steps",
        _table(steps) if steps else "None.",
    ]
    if box.torn:
        blocks.append(
            f"{box.torn} parts of the file are not whole, as they are when a process is killed "
            "while it writes them. They were left out."
        )
    return "\n\n".join(blocks) + "\n"


def _end(box: Box) -> str:
    if box.state in catalog.FINAL_STATES:
        return f"{box.state}{failed_with(box)}"
    if box.lives:
        return f"{box.state} now"
    if box.lives is None:
        return f"{box.state} when it was last written"
    return f"ended without a word while {box.state}"


def _process(box: Box) -> Iterator[str]:
    yield f"Process {box.pid} on {code(box.host)}, training-exporter {box.version}."
    yield f"Written since {moment(box.started)}."
    if box.lives is False and box.state not in catalog.FINAL_STATES:
        yield "It was killed (SIGKILL, SIGTERM, out of memory), or its machine went down."
    known = [f"{name} {code(value)}" for name, value in box.info.items() if value]
    if known:
        yield f"{', '.join(known)}."


def _counters(box: Box) -> Iterator[str]:
    counters = box.counters
    named = {
        **counters.totals._asdict(),
        **{f"pause, {name}, seconds": value for name, value in counters.pauses.items()},
        **{f"compute, {name}, seconds": value for name, value in counters.compute.items()},
        **{f"anomalies, {kind}": value for kind, value in counters.anomalies.items()},
        "reports on NaN": counters.reports,
        "restarts": counters.restarts,
    }
    for name, value in named.items():
        if value or name == "steps":
            yield f"{name.replace('_', ' ')}: {shown(float(value))}"


def _anomalies(anomalies: Iterable[Anomaly]) -> list[str]:
    return [
        f"{code(found.kind)} at step {found.step}, {moment(found.timestamp)} "
        f"(value {shown(found.value)}, threshold {shown(found.threshold)})"
        for found in anomalies
    ]


def _table(steps: Iterable[StepSignals]) -> str:
    lines = [
        "| step | time | loss | gradient norm | learning rate | seconds | tokens |",
        "|---:|:---|---:|---:|---:|---:|---:|",
    ]
    for step in steps:
        rate = next(iter(step.learning_rates.values()), None)
        values = (step.loss, step.grad_norm, rate, step.step_seconds, step.tokens)
        time = moment(step.timestamp).partition(" ")[2]  # the day stands above
        cells = (str(step.step), time, *map(shown, values))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
