# SPDX-License-Identifier: Apache-2.0
"""The run at a glance, for a person with a browser and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from html import escape
from importlib.resources import files
from math import isfinite
from time import time

from training_exporter import catalog
from training_exporter._version import __version__
from training_exporter.catalog import FINAL_STATES, runbook
from training_exporter.forensics.text import how_to_explain
from training_exporter.gpu.readings import AllocatorReading, GpuReadings
from training_exporter.history import Point
from training_exporter.layers.shown import LayerView
from training_exporter.snapshot import Anomaly, Snapshot, meaning
from training_exporter.status import RunStatus
from training_exporter.summary.making import summarise
from training_exporter.summary.text import ANOMALIES, summary_rows
from training_exporter.web.curves import Curve, Mark, draw
from training_exporter.web.gpus import gpu_section
from training_exporter.web.layers import layer_section
from training_exporter.web.panels import detectors, recent_anomalies, spoken, tiles
from training_exporter.web.stack import whereabouts
from training_exporter.wording import ago, count, duration, number, share

REFRESH_SECONDS = 5
STALE_SECONDS, STALE_STEPS = 60.0, 10
"""A running run has stalled after the longer of the two."""
PROJECT_URL = "https://github.com/training-exporter/training-exporter"
STATE_SIGNS = {
    catalog.STARTING: "◌",
    catalog.RUNNING: "▶",
    catalog.EVALUATING: "◎",
    catalog.SAVING: "⤓",
    catalog.COMPLETED: "✓",
    catalog.CRASHED: "✕",
    catalog.STOPPED: "■",
}
ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E"
    "%3Cpath d='M1 2c2 9 5 11 14 12' fill='none' stroke='%230a84c6' stroke-width='2.5'/%3E"
    "%3C/svg%3E"
)

_NO_GPUS = GpuReadings()

# On which of the two curves an anomaly is marked; the others are marked on both.
_ONLY_ON_LOSS = frozenset(
    {
        catalog.LOSS_SPIKE,
        catalog.DIVERGENCE,
        catalog.LOSS_PLATEAU,
        catalog.LOSS_OSCILLATION,
        catalog.EVAL_GAP,
    }
)
_ONLY_ON_GRADIENTS = frozenset(
    {catalog.GRADIENT_EXPLOSION, catalog.GRADIENT_VANISHING, catalog.CLIPPING_EXCESS}
)


def render(
    status: RunStatus,
    snapshot: Snapshot,
    *,
    gpus: GpuReadings = _NO_GPUS,
    memory: tuple[AllocatorReading, ...] = (),
    layers: LayerView | None = None,
    overhead: Mapping[str, float] | None = None,
    training_thread: int | None = None,
    now: float | None = None,
) -> str:
    """The page as HTML that needs nothing from elsewhere.

    Args:
        status: the run.
        snapshot: the state after its last step.
        gpus: what the driver of the GPUs says.
        memory: what torch's allocator says.
        layers: the last pass over the layers of the model.
        overhead: seconds that the exporter took, by catalog.PHASES.
        training_thread: identifier of the thread that trains; it is looked at only if the run does
            not get on.
        now: Unix time in seconds, the present time by default.
    """
    now = time() if now is None else now
    over = status.state in FINAL_STATES
    body = (
        _header(status, snapshot, now),
        _alarm(snapshot),
        _report(status),
        _progress(snapshot, over),
        _standing(status, snapshot, training_thread, now),
        _summary(status, snapshot, memory, overhead) if over else "",
        tiles(snapshot, status, now),
        _curves(snapshot),
        layer_section(layers),
        gpu_section(gpus, memory, now),
        '<div class="pair">',
        recent_anomalies(snapshot, now),
        detectors(snapshot, status.info.get("profile", "")),
        "</div>",
    )
    return (
        f'<!doctype html>\n<html lang="en">\n<head>{_head(status, snapshot)}</head>\n'
        f"<body>\n<main>{''.join(body)}</main>\n{_footer(status)}\n</body>\n</html>\n"
    )


def _head(status: RunStatus, snapshot: Snapshot) -> str:
    signals = snapshot.signals
    parts = [status.run, status.state]
    if signals is not None:
        parts = [f"{count(signals.step)} · loss {number(signals.loss)}", *parts]
    warning = "⚠ " if any(anomaly.active for anomaly in snapshot.anomalies) else ""
    # A page of a finished run is the last one there is: do not replace it by a browser's error.
    refresh = f'<meta http-equiv="refresh" content="{REFRESH_SECONDS}">'
    return (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"{'' if status.state in FINAL_STATES else refresh}"
        f'<link rel="icon" href="{ICON}"><title>{warning}{escape(" · ".join(parts))}</title>'
        f"<style>{_style()}</style>"
    )


@lru_cache(1)
def _style() -> str:
    return files(__package__).joinpath("landing_page.css").read_text(encoding="utf-8")


def _header(status: RunStatus, snapshot: Snapshot, now: float) -> str:
    facts = [f"rank {status.rank}", status.info.get("model"), status.info.get("framework")]
    known = " · ".join(fact for fact in facts if fact)
    failure = f" · {status.failure}" if status.failure else ""
    return (
        f'<header><div><h1 title="{escape(status.run)}">{escape(status.run)}</h1>'
        f'<p class="quiet">{escape(known)} · {_last_step(status, snapshot, now)}</p></div>'
        f'<p class="state {escape(status.state)}">'
        f'<span aria-hidden="true">{STATE_SIGNS.get(status.state, "")}</span>'
        f"{escape(status.state + failure)}</p></header>"
    )


def _last_step(status: RunStatus, snapshot: Snapshot, now: float) -> str:
    """When the last step was; it stands out once a run that should step has long not done so."""
    if snapshot.signals is None:
        return "no step yet"
    text = f"last step {ago(snapshot.signals.timestamp, now)}"
    if _stalled_seconds(status, snapshot, now) is not None:
        return f'<strong class="bad">{text}</strong>'
    return text


def _stalled_seconds(status: RunStatus, snapshot: Snapshot, now: float) -> float | None:
    """For how long a run that should step has not got on; None while that is no longer than
    usual."""
    last_step = snapshot.signals.timestamp if snapshot.signals else None
    without = now - (status.last_progress(last_step) or now)
    patience = max(STALE_SECONDS, STALE_STEPS * (snapshot.pace_seconds or 0.0))
    return without if status.state == catalog.RUNNING and without > patience else None


def _standing(status: RunStatus, snapshot: Snapshot, thread: int | None, now: float) -> str:
    """Where the training stands when it does not get on."""
    seconds = _stalled_seconds(status, snapshot, now)
    if seconds is None:
        return ""
    return (
        f'<p class="report card"><strong>No progress for {duration(seconds)}.</strong> '
        f"{whereabouts(thread)}</p>"
    )


def _alarm(snapshot: Snapshot) -> str:
    active = [anomaly.kind for anomaly in snapshot.anomalies if anomaly.active]
    if not active:
        return ""
    return f'<p class="alarm" role="status">⚠ {"; ".join(map(_active, active))}</p>'


def _active(kind: str) -> str:
    name, to_do = escape(spoken(kind)), runbook(kind)
    link = f' (<a href="{to_do}">what to do</a>)' if to_do else ""
    return f"<strong>{name}</strong>: {escape(meaning(kind))}{link}"


def _report(status: RunStatus) -> str:
    """The last report on a NaN: an alarm for as long as the run, whose weights may have it, but not
    for an overflow by which mixed precision finds its scale."""
    note = status.report
    if note is None:
        return ""
    look, sign = ("alarm", "⚠ ") if note.alarming else ("card", "")
    file = "it could not be written"
    if note.path is not None:
        file = f"<code>{escape(how_to_explain(note.path))}</code>"
    return (
        f'<p class="report {look}">{sign}{escape(note.summary)}. '
        f"<strong>Report</strong>: {file}</p>"
    )


def _summary(
    status: RunStatus,
    snapshot: Snapshot,
    memory: tuple[AllocatorReading, ...],
    overhead: Mapping[str, float] | None,
) -> str:
    """The whole of a run that is over, as it was told at its end if it was."""
    told: Iterable[tuple[str, str]] = status.summary
    if not told:
        if snapshot.signals is None:
            return ""
        told = summary_rows(summarise(status, snapshot, memory, overhead))
    rows = [
        f'<tr><th scope="row">{escape(name)}</th>'
        f"<td>{escape(spoken(text) if name == ANOMALIES else text)}</td></tr>"
        for name, text in told
    ]
    return (
        '<section class="card summary"><h2>The run as a whole</h2><div class="scroll">'
        f"<table><tbody>{''.join(rows)}</tbody></table></div></section>"
    )


def _progress(snapshot: Snapshot, over: bool) -> str:
    signals = snapshot.signals
    if signals is None:
        waiting = "<p><strong>Before the first step</strong></p>"
        return f'<section class="card progress">{waiting}</section>'
    epoch = "" if signals.epoch is None else f"<span>epoch {signals.epoch:.2f}</span>"
    if not signals.max_steps:
        facts = f"<strong>Step {count(signals.step)}</strong>{epoch}"
        return f'<section class="card progress"><p>{facts}</p></section>'
    done = min(1.0, signals.step / signals.max_steps)
    left = "" if over else f'<span class="eta">{duration(snapshot.eta_seconds)} left</span>'
    return (
        f'<section class="card progress"><p><strong>Step {count(signals.step)}</strong>'
        f"<span>of {count(signals.max_steps)}</span>"
        f"<span>{share(signals.step, signals.max_steps)}</span>{epoch}{left}</p>"
        f'<div class="track" role="progressbar" aria-label="steps" aria-valuemin="0" '
        f'aria-valuemax="{signals.max_steps}" aria-valuenow="{signals.step}">'
        f'<div style="width:{100 * done:.2f}%"></div></div></section>'
    )


def _curves(snapshot: Snapshot) -> str:
    points, totals = _points(snapshot), snapshot.totals
    first = _first_step(points, snapshot.history.stride)
    loss = Curve(
        "loss",
        "Loss",
        [(point.step, point.loss) for point in points],
        _marks(snapshot.recent, _ONLY_ON_GRADIENTS),
        first_step=first,
        not_finite=totals.non_finite_losses > 0,
    )
    gradients = Curve(
        "gradients",
        "Gradient norm",
        [(point.step, point.grad_norm) for point in points],
        _marks(snapshot.recent, _ONLY_ON_LOSS),
        log_scale=True,
        first_step=first,
        not_finite=totals.non_finite_grad_norms > 0,
    )
    return f'<div class="pair">{draw(loss)}{draw(gradients)}</div>'


def _points(snapshot: Snapshot) -> list[Point]:
    """The history up to the last step, which it gathers into points of several steps."""
    points, last = snapshot.history.points(), snapshot.signals
    if last is not None and (not points or last.step > points[-1].step):
        points.append(Point(last.step, _finite(last.loss), _finite(last.grad_norm)))
    return points


def _first_step(points: Sequence[Point], stride: int) -> int | None:
    """The first of the steps that the first point stands for; it has the number of the last."""
    if len(points) < 2 or points[1].step <= points[0].step:
        return None
    gathered = (points[1].step - points[0].step) * (stride - 1) // stride
    return max(0, points[0].step - gathered)


def _finite(value: float | None) -> float | None:
    return value if value is not None and isfinite(value) else None


def _marks(anomalies: Iterable[Anomaly], elsewhere: frozenset[str]) -> list[Mark]:
    return [
        Mark(anomaly.step, f"{spoken(anomaly.kind)} at step {count(anomaly.step)}")
        for anomaly in anomalies
        if anomaly.kind not in elsewhere
    ]


def _footer(status: RunStatus) -> str:
    over = status.state in FINAL_STATES
    fresh = "the run is over" if over else f"refreshes every {REFRESH_SECONDS} s"
    return (
        f'<footer><span><a href="{PROJECT_URL}">training-exporter</a> {escape(__version__)}</span>'
        '<a href="/metrics">metrics</a><a href="/-/healthy">health</a>'
        f"<span>{fresh}</span></footer>"
    )
