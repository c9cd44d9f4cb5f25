# SPDX-License-Identifier: Apache-2.0
"""The curves of a picture: loss and gradient norm, each in a panel with what explains it."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan
from typing import Any, Final, TypeAlias

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from training_exporter import catalog
from training_exporter.replay.plotting.curves import Axis, Curve, Point, Sketch
from training_exporter.replay.plotting.marks import Lane, draw_bars, printable, tint, visible
from training_exporter.replay.plotting.scales import LOG, NOTHING, SYMLOG, Scale, scale_of
from training_exporter.wording import number

MAX_EVALUATIONS = 6
"""Data sets that are drawn; more lines over each other say nothing."""
FEW = 60
"""Points up to which each is marked."""
LONG = 1e5
"""From there on a number is written with an exponent."""

_IN_LOSS: Final = (
    catalog.LOSS_SPIKE, catalog.DIVERGENCE, catalog.LOSS_PLATEAU, catalog.LOSS_OSCILLATION,
    catalog.EVAL_GAP, catalog.RESUME_JUMP,
)  # fmt: skip
_IN_GRAD_NORM: Final = (
    catalog.GRADIENT_EXPLOSION, catalog.GRADIENT_VANISHING, catalog.CLIPPING_EXCESS,
)  # fmt: skip
_LOSS, _LOSS_EMA = "#56B4E9", "#0072B2"
_NORM, _NORM_EMA = "#D9A3C0", "#7B2D5E"
_EVALUATED: Final = ("#E69F00", "#009E73", "#CC79A7", "#D55E00", "#882255", "#000000")
_BAD: Final = "#DC3220"
_ABOVE: Final = (1.0, 1.03)
"""Where it is marked that values are not finite: at no height of the panel, as they have none."""


def draw_loss(panel: Axes, sketch: Sketch, axis: Axis, lanes: Sequence[Lane]) -> None:
    """Draw the loss of steps and of evaluations."""
    drawn = list(sketch.evaluations.items())[:MAX_EVALUATIONS]
    _set_scale(panel, "loss", scale_of([sketch.loss, *(curve for _, curve in drawn)]))
    tint(panel, lanes, _IN_LOSS, "loss")
    _draw_signal(panel, "loss", sketch.loss, axis, (_LOSS, _LOSS_EMA))
    for colour, (dataset, curve) in zip(_EVALUATED, drawn, strict=False):
        _draw_evaluations(panel, dataset, curve, axis, colour)
    rest = len(sketch.evaluations) - len(drawn)
    if rest:
        panel.plot([], [], linestyle="", label=f"and {rest:,} more data sets")
    _explain(panel)


def draw_norm(panel: Axes, sketch: Sketch, axis: Axis, lanes: Sequence[Lane]) -> None:
    """Draw the gradient norm, and above which it was clipped."""
    _set_scale(panel, "gradient norm", scale_of([sketch.grad_norm]))
    tint(panel, lanes, _IN_GRAD_NORM, "grad-norm")
    _draw_signal(panel, "gradient norm", sketch.grad_norm, axis, (_NORM, _NORM_EMA))
    _draw_threshold(panel, sketch.clip_threshold, axis)
    _explain(panel)


def _draw_signal(
    panel: Axes, name: str, curve: Curve, axis: Axis, colours: tuple[str, str]
) -> None:
    """Draw values, from where to where they go if a point stands for many, and their average."""
    gid = name.replace("gradient ", "grad-")
    colour, strong = colours
    xs, means = _line(axis, curve, "mean")
    label = name
    if curve.stride > 1:
        least, most = _line(axis, curve, "least")[1], _line(axis, curve, "most")[1]
        panel.fill_between(
            xs, least, most, color=colour, alpha=0.35, linewidth=0.6, gid=f"{gid}-range",
            label=f"lowest to highest of {curve.stride:,} rows",
        )  # fmt: skip
        label += ", mean of these"
    _plot(panel, (xs, means), gid, color=colour, linewidth=0.9, label=label, **_dots(curve))
    alone = [piece[0] for piece in axis.pieces(curve) if len(piece) == 1]
    if alone:  # no line leads to them
        dots = [axis.span(point)[1] for point in alone], [point.mean for point in alone]
        _plot(panel, dots, f"{gid}-alone", color=colour, linestyle="", marker="o", markersize=3)
    _plot(panel, _averages(axis, curve), f"{gid}-ema", color=strong, linewidth=1.6, label="EMA")
    _mark_non_finite(panel, gid, curve, axis, "")


def _draw_evaluations(panel: Axes, dataset: str, curve: Curve, axis: Axis, colour: str) -> None:
    label, gid = f"loss of {printable(dataset, 22)}", f"eval-{printable(dataset)}"
    look = {"color": colour, "linewidth": 1.2, "label": label, **_dots(curve, "D")}
    _plot(panel, _line(axis, curve, "mean"), gid, **look)
    _mark_non_finite(panel, gid, curve, axis, f"{label}: ")


def _draw_threshold(panel: Axes, curve: Curve, axis: Axis) -> None:
    """Draw above which norm gradients are clipped, without pressing the norms flat for it."""
    values = [point.mean for point in curve.points if point.finite]
    if not values:
        return
    low, high = panel.get_ylim()
    last = "" if len(set(values)) == 1 else "last "
    _plot(
        panel, _line(axis, curve, "mean"), "clip-threshold", color=_BAD, linewidth=1,
        linestyle="--", label=f"clip threshold, {last}{number(values[-1])}",
    )  # fmt: skip
    if max(values) > 2 * high or min(values) < low:
        panel.set_ylim(low, high)


def _mark_non_finite(panel: Axes, gid: str, curve: Curve, axis: Axis, of: str) -> None:
    """Mark where values are NaN or infinite, where a line has no more than a gap."""
    count = curve.non_finite
    if count:
        spans = visible((axis.span(point) for point in curve.points if point.non_finite), axis)
        look = {"color": _BAD, "clip_on": False, "label": f"{of}{count:,} NaN or Inf"}
        draw_bars(panel, spans, _ABOVE, f"{gid}-non-finite", **look)


def _set_scale(panel: Axes, name: str, scale: Scale) -> None:
    panel.grid(True, axis="y", linewidth=0.7)
    panel.set_axisbelow(True)
    panel.margins(y=0.06)
    panel.set_ylabel(f"{name} ({scale.words})" if scale.words else name)
    if scale.name == LOG:
        panel.set_yscale(LOG)
        panel.yaxis.set_major_locator(LogLocator(subs=scale.subs))
        panel.yaxis.set_minor_formatter(NullFormatter())
    elif scale.name == SYMLOG:
        panel.set_yscale(SYMLOG, linthresh=scale.linear_to)
    elif scale is NOTHING:
        panel.set_yticks([])
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
    panel.yaxis.set_label_coords(-0.068, 0.5)  # below each other, however wide the numbers are


def _tick(value: float) -> str:
    """A number beside an axis, where there is room for a few characters."""
    if abs(value) < LONG:
        return number(value)
    mantissa, _, exponent = f"{value:.3g}".partition("e+")
    return f"{mantissa}e{int(exponent)}".replace("-", "\N{MINUS SIGN}")


_Line: TypeAlias = tuple[Sequence[float], Sequence[float]]


def _line(axis: Axis, curve: Curve, what: str) -> _Line:
    """Places and values of a line, which NaN breaks where it must not be drawn through."""
    xs: list[float] = []
    ys: list[float] = []
    for piece in axis.pieces(curve):
        _append(xs, ys, [(axis.span(point)[1], getattr(point, what)) for point in piece])
    return xs, ys


def _averages(axis: Axis, curve: Curve) -> _Line:
    """The line of the averages: a NaN leaves them alone, a restart ends them."""
    xs: list[float] = []
    ys: list[float] = []
    known = [point for point in curve.points if point.level is not None]
    for piece in axis.parts(known):
        _append(xs, ys, [(axis.span(point)[1], _level(point)) for point in piece])
    return xs, ys


def _level(point: Point) -> float:
    return nan if point.level is None else point.level


def _append(xs: list[float], ys: list[float], piece: Sequence[tuple[float, float]]) -> None:
    if xs:
        xs.append(xs[-1])
        ys.append(nan)
    xs += [x for x, _ in piece]
    ys += [y for _, y in piece]


def _dots(curve: Curve, marker: str = "o") -> dict[str, Any]:
    return {"marker": marker, "markersize": 3} if len(curve.points) <= FEW else {}


def _plot(panel: Axes, line: _Line, gid: str, **look: Any) -> None:
    panel.plot(*line, gid=gid, solid_joinstyle="round", **look)


def _explain(panel: Axes) -> None:
    """Say beside a panel what its lines are, where it covers none of them."""
    legend = panel.legend(
        loc="upper left", bbox_to_anchor=(1.005, 1.02), frameon=False, fontsize=8.5
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
