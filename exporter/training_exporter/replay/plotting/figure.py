# SPDX-License-Identifier: Apache-2.0
"""The picture as a whole, and the file that it goes into."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from training_exporter.files import write_whole
from training_exporter.replay.playing import Playback
from training_exporter.replay.plotting.curves import Axis, Sketch
from training_exporter.replay.plotting.marks import draw_lanes, lanes_of, printable
from training_exporter.replay.plotting.panels import draw_loss, draw_norm
from training_exporter.replay.report import counted
from training_exporter.replay.trouble import ReplayError

FORMATS: Final = (".svg", ".png", ".pdf")

_UNDATED: Final[dict[str, dict[str, Any]]] = {
    ".svg": {"Date": None},
    ".pdf": {"CreationDate": None},
}
"""No date goes into the file: the same run is the same picture."""
_QUIET, _TICK = "#56626E", "#8A949E"
_STYLE: Final = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "Helvetica"],
    "font.size": 9,
    "svg.fonttype": "none",  # text that can be searched
    "svg.hashsalt": "training-exporter",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _TICK,
    "xtick.color": _TICK,
    "ytick.color": _TICK,
    "xtick.labelcolor": "#16202A",
    "ytick.labelcolor": "#16202A",
    "axes.labelcolor": "#16202A",
    "text.color": "#16202A",
    "grid.color": "#E3E8EC",
}

# In inches, which are 100 pixels where a picture is 1,200 wide.
_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM, _GAP = 12.0, 0.85, 2.6, 0.75, 0.55, 0.18
_LOSS_HEIGHT, _NORM_HEIGHT, _LANE_HEIGHT = 3.2, 2.2, 0.19
_DPI = 150


def require_format(path: Path) -> None:
    """Refuse a file whose name does not end in the name of a format.

    Raises:
        ReplayError: naming what is expected.
    """
    if path.suffix.lower() not in FORMATS:
        raise ReplayError(f"--plot takes a file that ends in {', '.join(FORMATS)}, not {path}")


def save(path: Path, playback: Playback, sketch: Sketch, run: str) -> None:
    """Draw a run that was played, and write it whole or not at all.

    Args:
        path: the file; how it ends says in which format. Where it is a link, what that leads to
            is written.
        playback: the run.
        sketch: its curves.
        run: its name.

    Raises:
        OSError: no permission, disk full, no such folder.
    """
    suffix = path.suffix.lower()
    about = {"Title": printable(run), **_UNDATED.get(suffix, {})}
    content = BytesIO()
    # Settings of the user's own stay out of it, and as they are.
    with matplotlib.style.context(["default", _STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a name in letters that the font has not
        figure = draw(playback, sketch, run)
        figure.savefig(content, format=suffix[1:], dpi=_DPI, metadata=about)
    target = path.resolve()
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    write_whole(target, content.getvalue(), draft=draft)


def draw(playback: Playback, sketch: Sketch, run: str) -> Figure:
    """The picture of a run that was played; arguments as for `save`."""
    axis = sketch.axis()
    lanes = lanes_of(playback.judges, axis)
    has_loss, has_norm = sketch.loss.points or sketch.evaluations, sketch.grad_norm.points
    heights = [_LOSS_HEIGHT] * bool(has_loss) + [_NORM_HEIGHT] * bool(has_norm)
    heights += [_LANE_HEIGHT * len(lanes)] * bool(lanes)
    figure = Figure(figsize=(_WIDTH, _TOP + sum(heights) + _GAP * (len(heights) - 1) + _BOTTOM))
    panels = _panels(figure, heights)
    _head(figure, playback, run)
    _share(panels, axis)
    left = iter(panels)
    if has_loss:
        draw_loss(next(left), sketch, axis, lanes)
    if has_norm:
        draw_norm(next(left), sketch, axis, lanes)
    if lanes:
        draw_lanes(next(left), lanes)
    return figure


def _panels(figure: Figure, heights: Sequence[float]) -> list[Axes]:
    """Panels below each other over one axis, with room beside them for what explains them."""
    whole = figure.get_figheight()
    panels: list[Axes] = []
    top = whole - _TOP
    for height in heights:
        panel = figure.add_axes(
            (
                _LEFT / _WIDTH,
                (top - height) / whole,
                1 - (_LEFT + _RIGHT) / _WIDTH,
                height / whole,
            ),
            sharex=panels[0] if panels else None,
        )
        panels.append(panel)
        top -= height + _GAP
    return panels


def _share(panels: Sequence[Axes], axis: Axis) -> None:
    """Give the panels their common axis, which is marked below the last of them."""
    margin = (axis.high - axis.low) / 100 or 1
    panels[0].set_xlim(axis.low - margin, axis.high + margin)
    for panel in panels:
        panel.tick_params(labelbottom=panel is panels[-1])
    panels[-1].xaxis.set_major_locator(MaxNLocator(nbins=9, steps=[1, 2, 5, 10], integer=True))
    panels[-1].xaxis.set_major_formatter(FuncFormatter(lambda place, _: f"{place:,.0f}"))
    panels[-1].set_xlabel(axis.label)


def _head(figure: Figure, playback: Playback, run: str) -> None:
    """Write above it which run it is and who judged it."""
    course = playback.course
    facts = [
        f"{printable(str(playback.path), 70)}: {playback.source.format.name}",
        counted(course.rows, "row"),
        *([counted(course.evaluations, "evaluation")] if course.evaluations else []),
        _found(playback),
    ]
    left, height = _LEFT / _WIDTH, figure.get_figheight()
    title = figure.text(left, 1 - 0.33 / height, printable(run, 80), size=14, weight="bold")
    below = figure.text(left, 1 - 0.56 / height, ", ".join(facts), color=_QUIET)
    for text in (title, below):
        text.set_parse_math(False)


def _found(playback: Playback) -> str:
    by_profile = {judge.profile: sum(judge.totals().values()) for judge in playback.judges}
    return ", ".join(
        f"{profile}: {f'{count:,}' if count else 'no'} {'anomaly' if count == 1 else 'anomalies'}"
        for profile, count in by_profile.items()
    )
