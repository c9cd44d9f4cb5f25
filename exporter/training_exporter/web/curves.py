# SPDX-License-Identifier: Apache-2.0
"""A small curve as inline SVG.

Positions are percentages and sizes are pixels, so that a drawing of any width keeps its line
weights and its text legible. Only the line itself lies in a box that is stretched.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import ceil, floor, log10
from typing import NamedTuple

from training_exporter.wording import count, number

WIDTH = 1000
HEIGHT = 1000
TOP, BOTTOM = 10.0, 97.0
"""Where the greatest and the least value lie, in percent from above; markers have the rest."""
RIGHT = 98.5
HUGE = 1e307
"""Beyond this the difference of two values is not a number any more."""
LOG_SPAN = 20.0
"""A curve of positive values that reach this far above its median is drawn on a log scale."""


class Mark(NamedTuple):
    """Something that happened at a step."""

    step: int
    text: str


class Curve(NamedTuple):
    """What to draw: values by step, oldest first, None where there is none.

    Attributes:
        first_step: where the axis begins, None is at the first point.
        not_finite: whether there were values that are NaN or infinite, which no point has.
    """

    key: str
    title: str
    points: Sequence[tuple[int, float | None]]
    marks: Sequence[Mark] = ()
    log_scale: bool = False
    first_step: int | None = None
    not_finite: bool = False


class _Scale(NamedTuple):
    """From steps and values to percentages of the drawing."""

    first: int
    last: int
    low: float
    high: float
    log_scale: bool

    def x(self, step: int) -> float:
        return RIGHT * (step - self.first) / max(1, self.last - self.first)

    def y(self, value: float) -> float:
        height = (self._level(value) - self.low) / (self.high - self.low)
        return BOTTOM - (BOTTOM - TOP) * min(1.0, max(0.0, height))

    def _level(self, value: float) -> float:
        return log10(value) if self.log_scale else value

    @property
    def ticks(self) -> list[float]:
        """Two to five round values within the range."""
        if self.log_scale:
            return self._log_ticks
        span = self.high - self.low
        size = 10.0 ** floor(log10(span))
        parts = (0.2, 0.25, 0.5, 1.0, 2.5)
        stride = next(size * part for part in parts if span < 5.5 * size * part)
        return [stride * i for i in range(ceil(self.low / stride), floor(self.high / stride) + 1)]

    @property
    def _log_ticks(self) -> list[float]:
        """Powers of ten; where fewer than two lie within, their doubles and halves as well."""
        lowest, highest = ceil(self.low), floor(self.high)
        if highest > lowest:
            stride = ceil((highest - lowest + 1) / 5)
            return [10.0**power for power in range(lowest, highest + 1, stride)]
        steps = [log10(digit) + power for power in (lowest - 1, lowest) for digit in (1, 2, 5)]
        within = [10.0**step for step in steps if self.low <= step <= self.high]
        return within or [10.0**self.low, 10.0**self.high]


def draw(curve: Curve) -> str:
    """The curve as a figure; a sentence where there are not yet two values to join."""
    shown = [(step, value) for step, value in curve.points if value is not None]
    log_scale = _wants_log_scale(curve, [value for _, value in shown])
    if log_scale:
        shown = [(step, value) for step, value in shown if value > 0]
    if len(shown) < 2:
        return _figure(curve, f'<p class="empty">{escape(_why_empty(curve))}</p>')
    scale = _scale_of(curve, [value for _, value in shown], log_scale)
    drawing = "".join(
        (
            f'<div class="plot"><svg role="img" width="100%" height="190" '
            f'aria-labelledby="{curve.key}-title {curve.key}-desc">',
            f'<title id="{curve.key}-title">{escape(curve.title)} by step</title>',
            f'<desc id="{curve.key}-desc">{escape(_described(curve, shown))}</desc>',
            *[_grid_line(scale, tick) for tick in scale.ticks],
            *[_mark(scale, mark) for mark in curve.marks if scale.first <= mark.step <= scale.last],
            _line(scale, curve.points),
            _end(scale, *shown[-1]),
            "</svg>",
            f'<p class="steps"><span>step {count(scale.first)}</span>'
            f"<span>step {count(scale.last)}</span></p></div>",
        )
    )
    return _figure(curve, drawing, "log scale" if log_scale else "")


def _why_empty(curve: Curve) -> str:
    """What a curve of fewer than two values that can be drawn lacks."""
    values = [value for _, value in curve.points if value is not None]
    name = curve.title.lower()
    if len(curve.points) < 2:
        return "The curve begins with the second step."
    if not values:
        return f"No {name} was finite." if curve.not_finite else f"No {name} was reported."
    if len(values) < 2:
        return "The curve begins with the second value."
    return f"Fewer than two values of the {name} are above 0, as a log scale needs."


def _figure(curve: Curve, drawing: str, note: str = "") -> str:
    caption = f"{escape(curve.title)} <small>{note}</small>" if note else escape(curve.title)
    return f'<figure class="card"><figcaption>{caption}</figcaption>{drawing}</figure>'


def _wants_log_scale(curve: Curve, values: Sequence[float]) -> bool:
    if curve.log_scale or not values:
        return curve.log_scale
    median = sorted(values)[len(values) // 2]
    return min(values) > 0 and max(values) > LOG_SPAN * median


def _scale_of(curve: Curve, values: Sequence[float], log_scale: bool) -> _Scale:
    steps = [step for step, _ in curve.points]
    low, high = max(min(values), -HUGE), min(max(values), HUGE)
    if log_scale:
        low, high = log10(low), log10(high)
    # A flat line lies in the middle, on a scale that does not blow its noise up.
    room = max(0.0, (0.1 if log_scale else 1e-3 * max(abs(low), abs(high), 1e-9)) - (high - low))
    low, high = low - room, high + room
    first = min(steps) if curve.first_step is None else min(curve.first_step, *steps)
    return _Scale(first, max(steps), low, high, log_scale)


def _described(curve: Curve, shown: Sequence[tuple[int, float]]) -> str:
    values = [value for _, value in shown]
    marked = f"; {len(curve.marks)} anomalies marked" if curve.marks else ""
    return (
        f"{number(values[0])} at step {count(shown[0][0])}, "
        f"{number(values[-1])} at step {count(shown[-1][0])}, "
        f"between {number(min(values))} and {number(max(values))}{marked}"
    )


def _line(scale: _Scale, points: Sequence[tuple[int, float | None]]) -> str:
    """The line, broken where values are missing and where the steps go back."""
    path: list[str] = []
    pen, previous = "M", scale.first
    for step, value in points:
        if value is None or (scale.log_scale and value <= 0):
            pen = "M"
            continue
        if step < previous:
            pen = "M"
        path.append(f"{pen}{scale.x(step) * 10:.1f} {scale.y(value) * 10:.1f}")
        pen, previous = "L", step
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" width="100%" '
        f'height="100%"><path class="line" vector-effect="non-scaling-stroke" d="{"".join(path)}"/>'
        "</svg>"
    )


def _end(scale: _Scale, step: int, value: float) -> str:
    return f'<circle class="end" cx="{scale.x(step):.2f}%" cy="{scale.y(value):.2f}%" r="4"/>'


def _grid_line(scale: _Scale, tick: float) -> str:
    y = scale.y(tick)
    return (
        f'<line class="grid" x1="0" x2="100%" y1="{y:.2f}%" y2="{y:.2f}%"/>'
        f'<text class="tick" x="-8" y="{y:.2f}%" dy="4">{number(tick, 3)}</text>'
    )


def _mark(scale: _Scale, mark: Mark) -> str:
    """A dashed line with a triangle on top: a shape, so that colour is not needed to see it.

    A wider line that is not seen lies over it, for a pointer to hit: its title says what it was.
    """
    x = f"{scale.x(mark.step):.2f}%"
    return (
        f'<g class="mark"><title>{escape(mark.text)}</title>'
        f'<line x1="{x}" x2="{x}" y1="10" y2="100%"/>'
        f'<svg x="{x}" y="0" overflow="visible"><path d="M-6 1h12l-6 10z"/></svg>'
        f'<line class="reach" x1="{x}" x2="{x}" y1="0" y2="100%"/></g>'
    )
