# SPDX-License-Identifier: Apache-2.0
"""The tiles and tables of the landing page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from math import isfinite

from training_exporter.catalog import FORWARD_BACKWARD, OPTIMIZER
from training_exporter.flops import utilisation
from training_exporter.signals import Evaluation, StepSignals
from training_exporter.snapshot import Anomaly, AnomalyStatus, Snapshot, meaning
from training_exporter.status import RunStatus
from training_exporter.wording import UNKNOWN, ago, count, duration, number

_PHASE_WORDS = {FORWARD_BACKWARD: "forward and backward", OPTIMIZER: "optimiser"}


def tiles(snapshot: Snapshot, status: RunStatus, now: float) -> str:
    """What the last step and the last evaluation gave, one number to a tile."""
    signals = snapshot.signals or StepSignals(0, now)
    clip = signals.clip_threshold
    clipped = "" if clip is None else f" · clip {number(clip, 3)}"
    shown = (
        _tile("Loss", number_shown(signals.loss), _average(snapshot.loss_ema)),
        _tile(
            "Gradient norm",
            number_shown(signals.grad_norm),
            _average(snapshot.grad_norm_ema) + clipped,
        ),
        _throughput_tile(snapshot, status.peak_flops),
        _step_time_tile(signals, status.last_compute),
        _learning_rate_tile(signals),
        _evaluation_tile(snapshot.evaluations.values(), now),
    )
    return f'<div class="tiles">{"".join(shown)}</div>'


def _tile(label: str, value: str, note: str = "") -> str:
    return (
        f'<dl class="card"><dt>{label}</dt><dd class="value">{value}</dd>'
        f"<dd><small>{escape(note)}</small></dd></dl>"
    )


def number_shown(value: float | None) -> str:
    """A number as HTML: what is not finite stands out, what is unknown is read as such."""
    if value is None:
        return f'<span class="quiet" role="img" aria-label="unknown">{UNKNOWN}</span>'
    return number(value) if isfinite(value) else f'<span class="nan">{number(value)}</span>'


def _time(seconds: float | None) -> str:
    return number_shown(None) if seconds is None else duration(seconds)


def _average(value: float | None) -> str:
    return "" if value is None else f"EMA {number(value)}"


def _step_time_tile(signals: StepSignals, compute: Mapping[str, float]) -> str:
    waited = signals.data_wait_seconds
    parts = [] if waited is None else [f"+ {duration(waited)} for data"]
    parts += [f"{_PHASE_WORDS[phase]} {duration(seconds)}" for phase, seconds in compute.items()]
    return _tile("Step time", _time(signals.step_seconds), " · ".join(parts))


def _throughput_tile(snapshot: Snapshot, peak_flops: float | None) -> str:
    rate, unit, total = snapshot.tokens_per_second, "tokens", snapshot.totals.tokens
    if rate is None:
        rate, unit, total = snapshot.samples_per_second, "samples", snapshot.totals.samples
    if rate is None:
        return _tile("Tokens / s", number_shown(None))
    used, padding = utilisation(snapshot.flops_per_second, peak_flops), snapshot.padding_ratio
    note = f"{count(total)} in all"
    note += "" if padding is None else f" · {padding:.0%} padding"
    note += "" if used is None else f" · MFU {used:.0%}"
    return _tile(f"{unit.capitalize()} / s", number(rate), note)


def _learning_rate_tile(signals: StepSignals) -> str:
    rates = list(signals.learning_rates.items())
    if not rates:
        return _tile("Learning rate", number_shown(None))
    group, rate = rates[0]
    note = f"group {group} of {len(rates)} groups" if len(rates) > 1 else ""
    return _tile("Learning rate", number_shown(rate), note)


def _evaluation_tile(evaluations: Iterable[Evaluation], now: float) -> str:
    last = max(evaluations, key=lambda evaluation: evaluation.timestamp, default=None)
    if last is None:
        return _tile("Evaluation loss", number_shown(None))
    note = f"{last.dataset}, step {count(last.step)}, {ago(last.timestamp, now)}"
    return _tile("Evaluation loss", number_shown(last.loss), note)


def recent_anomalies(snapshot: Snapshot, now: float) -> str:
    """The last anomalies, the newest first."""
    if not snapshot.recent:
        table = '<p class="empty">None so far.</p>'
    else:
        rows = [_anomaly_row(anomaly, now) for anomaly in reversed(snapshot.recent)]
        table = table_of(("Kind", "Step", "Value", "Threshold", "When"), rows)
    return f'<section class="card"><h2>Last anomalies</h2>{table}</section>'


def _anomaly_row(anomaly: Anomaly, now: float) -> str:
    cells = (
        count(anomaly.step),
        number_shown(anomaly.value),
        number_shown(anomaly.threshold) if anomaly.passed_threshold else "",
        ago(anomaly.timestamp, now),
    )
    numbers = "".join(f'<td class="right">{cell}</td>' for cell in cells)
    kind = f"{escape(spoken(anomaly.kind))}<small>{escape(meaning(anomaly.kind))}</small>"
    return f'<tr><th scope="row">{kind}</th>{numbers}</tr>'


def detectors(snapshot: Snapshot, profile: str) -> str:
    """What judges the run, and whether it can judge already."""
    rows = [_detector_row(status) for status in snapshot.anomalies]
    table = table_of(("Kind", "Found", "Now"), rows) if rows else '<p class="empty">None.</p>'
    note = f" <small>{escape(profile)}</small>" if profile else ""
    return f'<section class="card detectors"><h2>Detectors{note}</h2>{table}</section>'


def _detector_row(status: AnomalyStatus) -> str:
    if status.active:
        flag = '<strong class="bad">▲ active</strong>'
    else:
        flag = "● ready" if status.ready else '<span class="quiet">◌ warming up</span>'
    return (
        f'<tr title="{escape(meaning(status.kind))}"><th scope="row">{escape(spoken(status.kind))}'
        f'</th><td class="right">{count(status.total)}</td>'
        f'<td class="right">{flag}</td></tr>'
    )


def table_of(columns: tuple[str, ...], rows: Iterable[str]) -> str:
    first, *others = columns
    head = f'<th scope="col">{first}</th>'
    head += "".join(f'<th scope="col" class="right">{column}</th>' for column in others)
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def spoken(kind: str) -> str:
    """The name of a kind of anomaly in words."""
    return kind.replace("_", " ")
