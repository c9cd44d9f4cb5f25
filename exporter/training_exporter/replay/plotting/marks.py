# SPDX-License-Identifier: Apache-2.0
"""Marks that stand at a place in a run, whatever the height of its curves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from matplotlib.axes import Axes
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from training_exporter import catalog
from training_exporter.replay.judging import Judge
from training_exporter.replay.plotting.curves import Axis
from training_exporter.values import clean_text

GRAIN = 500
"""What is nearer to each other than this part of the width is one mark."""
MAX_TINTS = 60
"""Anomalies of a kind up to which they are shown behind the curves, too."""
COLOURS: Final = dict(
    zip(
        catalog.ANOMALY_KINDS,
        (
            "#D55E00", "#882255", "#999933", "#44AA99", "#CC3377", "#332288", "#DC3220",
            "#B8860B", "#E69F00", "#117733", "#56B4E9", "#AA4499", "#555555", "#7F4F24",
        ),
        strict=True,
    )
)  # fmt: skip
"""By kind, after the palettes of Okabe and Ito and of Tol. No colour is the only sign of a kind."""
Span: TypeAlias = tuple[float, float]
_LANE: Final = "#F4F6F8"
_FILLED: Final = 0.72
"""Part of a lane's height that its bars fill."""


@dataclass(frozen=True)
class Lane:
    """The anomalies of a kind that a profile found.

    Attributes:
        key: kind and profile, in one word.
        label: for the reader: the kind, the profile where there are two, and how many.
        spans: where they are, those that cannot be told apart as one.
    """

    kind: str
    key: str
    label: str
    spans: Sequence[Span]


def lanes_of(judges: Sequence[Judge], axis: Axis) -> list[Lane]:
    """A lane for each kind that was found, in the order of the catalogue."""
    return [
        _lane(judge, kind, axis, several=len(judges) > 1)
        for kind in COLOURS
        for judge in judges
        if judge.totals().get(kind)
    ]


def _lane(judge: Judge, kind: str, axis: Axis, *, several: bool) -> Lane:
    total = judge.totals()[kind]
    found = [axis.span(each) for each in judge.episodes if each.begun.kind == kind]
    profile = f", {judge.profile}" if several else ""
    kept = f", the first {len(found):,} drawn" if len(found) < total else ""
    label = f"{kind}{profile}: {total:,}{kept}"
    return Lane(kind, f"{kind}-{judge.profile}", label, visible(found, axis))


def visible(spans: Iterable[Span], axis: Axis) -> list[Span]:
    """Spans as wide as can be seen, those that would touch as one."""
    grain = max(axis.high - axis.low, 1) / GRAIN
    return _joined([(low, max(high, low + grain)) for low, high in spans], grain / 2)


def _joined(spans: Iterable[Span], gap: float) -> list[Span]:
    """Spans in their order, those that are not further than a gap from each other as one."""
    joined: list[Span] = []
    for low, high in sorted(spans):
        if joined and low <= joined[-1][1] + gap:
            joined[-1] = (joined[-1][0], max(high, joined[-1][1]))
        else:
            joined.append((low, high))
    return joined


def draw_bars(
    panel: Axes,
    spans: Iterable[Span],
    heights: tuple[float, float],
    gid: str,
    **look: Any,
) -> None:
    """Draw bars as one outline, which keeps files small.

    Args:
        panel: where; its limits stay as they are.
        spans: where they begin and end.
        heights: their lower and upper edge, in parts of the panel's height.
        gid: what the file calls them.
        look: colour and the like.
    """
    low, high = heights
    corners: list[tuple[float, float]] = []
    codes: list[Any] = []
    for first, last in spans:
        corners += [(first, low), (first, high), (last, high), (last, low), (first, low)]
        codes += [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY]
    if not corners:
        return
    bars = PathPatch(Path(corners, codes), transform=panel.get_xaxis_transform(), gid=gid, **look)
    bars.set_linewidth(0)
    panel.add_artist(bars)


def tint(panel: Axes, lanes: Iterable[Lane], kinds: Iterable[str], gid: str) -> None:
    """Colour a panel where there are anomalies of its kinds, whoever found them, unless there are
    so many that the curves could not be seen any more."""
    spans: dict[str, list[Span]] = {kind: [] for kind in kinds}
    for lane in lanes:
        if lane.kind in spans:
            spans[lane.kind] += lane.spans
    for kind, found in spans.items():
        tints = _joined(found, 0)
        if 0 < len(tints) <= MAX_TINTS:
            look = {"color": COLOURS[kind], "alpha": 0.2, "zorder": 0.5}
            draw_bars(panel, tints, (0.0, 1.0), f"{gid}-{kind}", **look)


def draw_lanes(panel: Axes, lanes: Sequence[Lane]) -> None:
    """Draw lanes below each other, each with its name beside it."""
    height = 1 / len(lanes)
    for place, lane in enumerate(lanes):
        middle = 1 - (place + 0.5) * height
        edges = (middle - _FILLED * height / 2, middle + _FILLED * height / 2)
        panel.axhspan(*edges, color=_LANE, linewidth=0, zorder=0)
        colour = COLOURS[lane.kind]
        draw_bars(panel, lane.spans, edges, f"anomalies-{lane.key}", color=colour)
        beside: dict[str, Any] = {"va": "center", "transform": panel.transAxes}
        panel.text(1.012, middle, "\N{BLACK SQUARE}", color=colour, **beside)
        panel.text(1.032, middle, lane.label, size=8.5, **beside)
    panel.set_ylim(0, 1)
    panel.set_yticks([])
    panel.spines["left"].set_visible(False)


def printable(text: str, most: int | None = None) -> str:
    """A text that any format can hold; of one that is too long the end, which says most in a
    path."""
    clean = clean_text(text)
    clean = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in clean)
    if most is None or len(clean) <= most:
        return clean
    return "\N{HORIZONTAL ELLIPSIS}" + clean[1 - most :]
