# SPDX-License-Identifier: Apache-2.0
"""A report in words: one line for the log, a page of Markdown for a person."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from shlex import quote
from typing import Final

from training_exporter.catalog import NON_FINITE_SOURCES
from training_exporter.forensics.cause import Cause, likely_causes
from training_exporter.forensics.report import (
    Inspection,
    ModuleFinding,
    Report,
    StepRow,
    broken,
    shown,
)
from training_exporter.forensics.step_rules import describe
from training_exporter.forensics.store import read_report
from training_exporter.program import program

ROWS: Final = 10
"""Steps in the table; all of them are in the file."""
TENSORS: Final = 10
INDICES: Final = 20
_NO_TIME: Final = "an unknown time"


def explain(path: Path) -> str:
    """What a report's file says, as Markdown: what `training-exporter explain` prints.

    Raises:
        ReportError: the file cannot be read or is no report.
    """
    return explained(read_report(path))


def summary(report: Report, path: Path | None = None) -> str:
    """One line for the log.

    Args:
        report: the report.
        path: its file, None when it could not be written.
    """
    cause = likely_causes(report)[0]
    line = f"{_headline(report)}; likely cause: {cause.title} ({cause.because})"
    if path is None:
        return _one_line(line)
    return _one_line(f"{line}; for more: {how_to_explain(path)}")


def how_to_explain(path: Path | str) -> str:
    """The command that explains a report, to be pasted into a shell."""
    return f"{program()} explain {quote(str(path))}"


def explained(report: Report) -> str:
    """A report as Markdown, with its likely causes and what to try."""
    likeliest, *others = likely_causes(report)
    blocks = [
        f"# {_capital(_headline(report))}",
        _where(report),
        "## Likely cause",
        f"**{_capital(likeliest.title)}.** What speaks for it: {likeliest.because}.",
        "Try first:",
        "\n".join(f"{number}. {text}" for number, text in enumerate(likeliest.advice, 1)),
        *_also(others),
        "## What was seen",
        _list(_seen(report)),
        f"## The last {len(report.steps[-ROWS:])} steps",
        _table(report.steps[-ROWS:]),
        *_not_known(report),
    ]
    return "\n\n".join(blocks) + "\n"


def _headline(report: Report) -> str:
    values = {"loss": report.loss, "gradient norm": report.grad_norm}
    bad = [f"{name} {shown(value)}" for name, value in values.items() if broken(value)]
    return f"{' and '.join(bad) or 'non-finite values'} at step {report.step}"


def _where(report: Report) -> str:
    about = report.about
    parts = [f"run {code(about.run)}", f"rank {about.rank}", moment(report.timestamp)]
    if report.epoch is not None:
        parts.append(f"epoch {shown(report.epoch)}")
    if about.model:
        parts.append(f"model {code(about.model)}")
    if about.framework:
        parts.append(f"framework {code(about.framework)}")
    return ", ".join(parts) + "."


def moment(timestamp: float) -> str:
    """A Unix time in words."""
    try:
        return f"{datetime.fromtimestamp(timestamp, timezone.utc):%Y-%m-%d %H:%M:%S} UTC"
    except (ValueError, OverflowError, OSError):
        return _NO_TIME


def _also(causes: Iterable[Cause]) -> list[str]:
    lines = [f"{_capital(cause.title)}: {cause.because}." for cause in causes]
    return ["Also possible:", _list(lines)] if lines else []


def _seen(report: Report) -> Iterator[str]:
    source = NON_FINITE_SOURCES.get(report.source, "a source this release does not know")
    yield f"Source {code(report.source)}: {source}."
    if report.first_layer is not None:
        yield f"First layer with a non-finite gradient: {code(report.first_layer)}."
    if report.first_module is not None:
        yield _module(report.first_module)
    yield from _inspected("input tensors", report.inputs)
    for labels in report.labels:
        yield f"Labels {code(labels.name)}: {labels.elements}, of which {labels.ignored} are -100."
    yield from _inspected("gradients", report.gradients)
    yield from _inspected("parameters and buffers", report.parameters)
    yield from _weights_now(report)
    if report.learning_rates:
        rates = report.learning_rates.items()
        yield f"Learning rate: {', '.join(f'{shown(v)} (group {code(k)})' for k, v in rates)}."
    if report.loss_scale is not None:
        yield f"Loss scale: {shown(report.loss_scale)}."
    if report.skipped:
        yield "The optimiser left the weights alone in this step."
    if report.batch_indices is not None:
        yield f"Rows of the batch: {_indices(report.batch_indices)}."
    if report.about.versions:
        versions = report.about.versions.items()
        yield f"Versions: {', '.join(f'{name} {version}' for name, version in versions)}."


def _weights_now(report: Report) -> Iterator[str]:
    """That training on is lost, where the update was made or nobody says that it was not."""
    seen, made = report.parameters, bool(report.steps) and report.steps[-1].broke_weights
    after = seen is not None and seen.step >= report.step and not seen.before_update
    if not made or (after and seen is not None and not seen.bad):
        return
    sure = report.skipped is False or after
    begin = "The update carried it into the weights" if sure else "Unless the update was left out"
    yield f"{begin}: only a checkpoint from before step {report.step} is good to go on from."


def _module(found: ModuleFinding) -> str:
    whence = "what went in was finite" if found.inputs_finite else "what went in was not finite"
    name = code(found.name) if found.name else "the model itself"
    shape = " x ".join(map(str, found.shape))
    return (
        f"First module with a non-finite output: {name} ({found.kind}), seen at step {found.step}:"
        f" {found.nan} NaN and {found.inf} Inf of {shape} ({found.dtype}); {whence}."
    )


def _inspected(what: str, seen: Inspection | None) -> Iterator[str]:
    if seen is None:
        return
    if not seen.bad:
        yield f"All {seen.checked} {what} are finite (looked at in step {seen.step})."
        return
    tensors = "".join(f"\n    - {describe(found)}" for found in seen.worst[:TENSORS])
    more = seen.bad - len(seen.worst[:TENSORS])
    tail = f"\n    - and {more} more" if more > 0 else ""
    yield (
        f"{seen.bad} of {seen.checked} {what} are not finite (looked at in step {seen.step}):"
        f"{tensors}{tail}"
    )


def _indices(indices: tuple[int, ...]) -> str:
    shown = ", ".join(map(str, indices[:INDICES]))
    more = len(indices) - INDICES
    return f"{shown} and {more} more" if more > 0 else shown


def _table(rows: Iterable[StepRow]) -> str:
    lines = [
        "| step | loss | gradient norm | learning rate | loss scale | skipped |",
        "|---:|---:|---:|---:|---:|:---|",
    ]
    lines += [
        f"| {row.step} | {shown(row.loss)} | {shown(row.grad_norm)} |"
        f" {shown(row.learning_rate)} | {shown(row.loss_scale)} |"
        f" {'yes' if row.skipped else ''} |"
        for row in rows
    ]
    return "\n".join(lines)


def _not_known(report: Report) -> list[str]:
    lines = [f"{gap.what}: {gap.why}." for gap in report.gaps]
    return ["## What is not known", _list(lines)] if lines else []


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _capital(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"


def code(text: str) -> str:
    """A name that comes from elsewhere, so that Markdown does not take it for markup."""
    return "`" + _one_line(text).replace("`", "'") + "`"


def _one_line(text: str) -> str:
    return " ".join(text.split())
