# SPDX-License-Identifier: Apache-2.0
"""On which scale values can be seen: a single spike must not press all else flat."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, log10
from statistics import median

from training_exporter.replay.plotting.curves import Curve

LINEAR, LOG, SYMLOG = "linear", "log", "symlog"
"""Scales as matplotlib calls them; the last is logarithmic both ways."""
WIDE = 50.0
"""Highest by lowest value from which on a scale is logarithmic."""
FLAT = 10.0
"""The same where most values would fill less than this part of a linear scale."""


@dataclass(frozen=True)
class Scale:
    """A scale.

    Attributes:
        name: LINEAR, LOG or SYMLOG.
        words: for the reader; empty where nothing needs to be said.
        subs: of LOG, the marks in each decade.
        linear_to: of SYMLOG, up to where it is linear.
    """

    name: str = LINEAR
    words: str = ""
    subs: Sequence[float] = ()
    linear_to: float = 1.0


NOTHING = Scale(words="no finite value")


def scale_of(curves: Iterable[Curve]) -> Scale:
    """The scale for curves in one panel."""
    points = [point for curve in curves for point in curve.points if point.finite]
    if not points:
        return NOTHING
    least, most = min(point.least for point in points), max(point.most for point in points)
    usual = sorted(point.mean for point in points)
    cut = len(usual) // 20
    flattened = usual[-1 - cut] - usual[cut] < (most - least) / FLAT
    if least > 0:
        if most / least >= WIDE or (flattened and most / least >= FLAT):
            return Scale(LOG, "log scale", _subs(log10(most) - log10(least)))
        return Scale()
    size = median([abs(mean) for mean in usual if mean] or [0.0])
    if size and flattened and max(most, -least) >= FLAT * size:
        linear_to = 10.0 ** ceil(log10(size))
        return Scale(SYMLOG, f"log scale beyond ±{linear_to:g}", linear_to=linear_to)
    return Scale()


def _subs(decades: float) -> Sequence[float]:
    """Marks in each decade, so that there are enough and not too many of them."""
    if decades < 1.5:
        return (1, 2, 3, 5, 7)
    return (1, 2, 5) if decades < 3 else (1,)
