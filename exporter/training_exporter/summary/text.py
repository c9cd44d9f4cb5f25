# SPDX-License-Identifier: Apache-2.0
"""The summary of a run in words, for a log, a message or a page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from training_exporter.catalog import GRAD_NORM, LOSS
from training_exporter.summary.making import KindFound, RunSummary
from training_exporter.wording import count, duration, number, share

MOST_STEPS: Final = 8
"""Steps of one kind of anomaly that are named."""
MOST_METRICS: Final = 4
"""Metrics of one evaluation that are named; all are in the file."""
ANOMALIES: Final = "anomalies"

_NEXT_TO_NOTHING: Final = 0.0005
_SMALL_PERCENT: Final = 10.0
_SHORT_RUN_SECONDS: Final = 60.0
"""Of a shorter run, what comes once, such as opening files, would pass for the cost of a step."""
_SIGNALS: Final = {LOSS: "loss", GRAD_NORM: "gradient norm"}

_SPEEDS: Final = ("runtime", "_time", "_per_second")
"""How the names of those end by which the Trainer says how fast an evaluation was."""

_PLAIN: Final = str.maketrans(
    {"\N{EN DASH}": "-", "\N{MINUS SIGN}": "-", "\N{NARROW NO-BREAK SPACE}": " "}
)


def summary_rows(summary: RunSummary) -> list[tuple[str, str]]:
    """What is known, as pairs of a heading and what stands behind it."""
    return [(name, text) for name, text in _rows(summary) if text]


def summary_block(summary: RunSummary) -> str:
    """Lines for a log of any encoding, with a first one that says how the run ended."""
    rows = summary_rows(summary)
    width = max([len(name) for name, _ in rows], default=0)
    lines = [f"  {name:<{width}}  {text}" for name, text in rows]
    return "\n".join([headline(summary), *lines]).translate(_PLAIN)


def headline(summary: RunSummary) -> str:
    """How the run ended, in one line."""
    failure = f" by {summary.failure}" if summary.failure else ""
    when = "before its first step" if summary.step is None else f"at step {count(summary.step)}"
    return f"run {summary.run} {summary.state}{failure} {when}"


def _rows(summary: RunSummary) -> Iterator[tuple[str, str]]:
    yield "error", summary.reason or ""
    yield "loss", _loss(summary)
    yield "evaluation loss", _evaluation(summary)
    yield "evaluation", _metrics(summary)
    yield "steps", _steps(summary)
    yield "trained on", _amounts(summary)
    yield "time", _time(summary)
    yield "throughput", _throughput(summary)
    yield ANOMALIES, _anomalies(summary)
    yield "clipped", _clipped(summary)
    yield "peak memory", _memory(summary)
    yield "this exporter", _overhead(summary)


def _loss(summary: RunSummary) -> str:
    parts = []
    if summary.loss is not None:
        parts.append(f"{number(summary.loss)} at the end")
    if summary.loss_ema is not None:
        parts.append(f"{number(summary.loss_ema)} on average (EMA)")
    if summary.best is not None:
        parts.append(f"{number(summary.best.loss)} at best, step {count(summary.best.step)}")
    return ", ".join(parts)


def _evaluation(summary: RunSummary) -> str:
    return ", ".join(f"{number(loss)} on {name}" for name, loss in summary.eval_loss.items())


def _metrics(summary: RunSummary) -> str:
    sets = [_results(*each) for each in summary.eval_metrics.items()]
    return "; ".join(filter(None, sets))


def _results(dataset: str, metrics: Mapping[str, float]) -> str:
    told = [(name, value) for name, value in metrics.items() if not name.endswith(_SPEEDS)]
    if not told:
        return ""
    parts = [f"{name} {number(value)}" for name, value in told[:MOST_METRICS]]
    more = len(told) - len(parts)
    return f"{', '.join(parts)}{f' and {more} more' if more else ''} on {dataset}"


def _steps(summary: RunSummary) -> str:
    parts = [count(summary.steps) + _beside_checkpoint(summary)]
    broken = summary.non_finite_steps.items()
    parts += [f"{count(steps)} with NaN or Inf in the {_SIGNALS[of]}" for of, steps in broken]
    if summary.skipped_steps:
        parts.append(f"{count(summary.skipped_steps)} skipped by the optimiser")
    return ", ".join(parts)


def _beside_checkpoint(summary: RunSummary) -> str:
    """How many there were with those before a checkpoint that the run went on from, or how many of
    them have not been lost by that."""
    steps, in_weights = summary.steps, summary.steps_in_weights
    if in_weights is None or in_weights == steps:
        return ""
    if in_weights > steps:
        return f" since a checkpoint, {count(in_weights)} with those before it"
    return f", of which {count(in_weights)} are in the weights"


def _amounts(summary: RunSummary) -> str:
    known = ((summary.tokens, "tokens"), (summary.samples, "samples"))
    return ", ".join(f"{count(amount)} {what}" for amount, what in known if amount is not None)


def _time(summary: RunSummary) -> str:
    total = summary.total_seconds
    if not total:
        return ""
    parts = [
        f"{name.replace('_', ' ')} {share(seconds, total)}"
        for name, seconds in summary.seconds.items()
        if seconds > _NEXT_TO_NOTHING * total
    ]
    return f"{duration(total)}: {', '.join(parts)}"


def _throughput(summary: RunSummary) -> str:
    known = ((summary.tokens_per_second, "tokens/s"), (summary.samples_per_second, "samples/s"))
    return ", ".join(f"{number(rate)} {what}" for rate, what in known if rate is not None)


def _anomalies(summary: RunSummary) -> str:
    return "; ".join(map(_kind, summary.anomalies)) or "none"


def _kind(found: KindFound) -> str:
    kind, total, steps = found
    named = steps[-MOST_STEPS:]
    if not named:
        return f"{kind} {total}"
    last = "last at step" if total > len(named) else "at step"
    return f"{kind} {total} ({last} {', '.join(map(count, named))})"


def _clipped(summary: RunSummary) -> str:
    return "" if summary.clip_ratio is None else f"{share(summary.clip_ratio, 1)} of steps"


def _memory(summary: RunSummary) -> str:
    peaks = summary.peak_memory_bytes.items()
    return ", ".join(f"{peak / 2**30:.2f} GiB on cuda:{device}" for device, peak in peaks)


def _overhead(summary: RunSummary) -> str:
    if summary.overhead_ratio is None:
        return ""
    spent = duration(summary.overhead_ratio * summary.total_seconds)
    if summary.total_seconds < _SHORT_RUN_SECONDS:
        return spent
    percent = 100 * summary.overhead_ratio
    return f"{spent}, {percent:{'.2g' if percent < _SMALL_PERCENT else '.0f'}} % of the time"
