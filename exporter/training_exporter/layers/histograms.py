# SPDX-License-Identifier: Apache-2.0
"""How the values in gradients and weights are spread, by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Final, NamedTuple

LOWEST: Final = -40
HIGHEST: Final = 24
PER_OCTAVE: Final = 4
"""Buckets from one power of two to the next, of equal width: what two bits of a fraction tell."""

SIDE: Final = (HIGHEST - LOWEST) * PER_OCTAVE
"""Buckets of each sign. Between them is one of all that is nearer to 0 than 2**LOWEST; what is
beyond 2**HIGHEST is in the outermost."""
NON_FINITE: Final = 2 * SIDE + 1
"""The place behind all buckets, where NaN and Inf are counted."""
COLUMNS: Final = NON_FINITE + 5
"""A row: the counts, and then the sum, the sum of squares, the least and the greatest of the values
that are finite."""


def _edge(place: int) -> float:
    octave, part = divmod(place, PER_OCTAVE)
    return float((1 + part / PER_OCTAVE) * 2.0 ** (LOWEST + octave))


_POSITIVE: Final = tuple(_edge(place) for place in range(SIDE + 1))
LIMITS: Final = (*[-edge for edge in reversed(_POSITIVE[:-1])], *_POSITIVE)
"""The upper end of each bucket."""


class Histogram(NamedTuple):
    """How finite values are spread. Of a sample all numbers are scaled up to what it stands for.

    Attributes:
        values: how many there are.
        least, greatest: of them; of a sample, those in it.
        sum, squares: of them, and of their squares.
        limits: the upper end of each bucket, in rising order; it begins where the one before ends.
        counts: values in each bucket; the first and the last are not empty.
    """

    values: float
    least: float
    greatest: float
    sum: float
    squares: float
    limits: tuple[float, ...]
    counts: tuple[float, ...]


class LayerHistograms(NamedTuple):
    """One look at the layers of the model, or at the shards of them that this process holds.

    Attributes:
        step: optimiser step before whose clipping it was.
        timestamp: Unix time in seconds.
        gradients: without the loss scale, by layer; empty if that is not known.
        parameters: by layer. Layers without a finite value are in neither.
    """

    step: int
    timestamp: float
    gradients: Mapping[str, Histogram]
    parameters: Mapping[str, Histogram]


Rows = Mapping[str, Sequence[Sequence[float]]]


class RawHistograms(NamedTuple):
    """The same as the devices give it: of each layer a row from each device.

    Attributes:
        gradients: with the loss scale.
        parameters: as they are.
        scale: the loss scale, None if it is not known.
        step, timestamp: as LayerHistograms has them, once they are known.
    """

    gradients: Rows
    parameters: Rows
    scale: float | None
    step: int = 0
    timestamp: float = 0.0

    def read(self) -> LayerHistograms:
        """What a person wants to see of it. Takes a millisecond for each layer or less."""
        scale = self.scale
        known = scale is not None and isfinite(scale) and scale > 0.0
        return LayerHistograms(
            self.step,
            self.timestamp,
            _by_layer(self.gradients, scale) if known and scale else {},
            _by_layer(self.parameters, 1.0),
        )


def _by_layer(rows: Rows, scale: float) -> dict[str, Histogram]:
    found = {layer: _histogram(parts, scale) for layer, parts in rows.items()}
    return {layer: histogram for layer, histogram in found.items() if histogram is not None}


def _histogram(parts: Sequence[Sequence[float]], scale: float) -> Histogram | None:
    """From the rows of all devices; None where no value is finite."""
    parts = [part for part in parts if any(part[:NON_FINITE])]
    if not parts:
        return None
    sums = [sum(column) for column in zip(*parts, strict=True)]
    counts = sums[:NON_FINITE]
    filled = [place for place, count in enumerate(counts) if count]
    shown = slice(filled[0], filled[-1] + 1)
    return Histogram(
        values=sum(counts),
        least=min(part[-2] for part in parts) / scale,
        greatest=max(part[-1] for part in parts) / scale,
        sum=sums[-4] / scale,
        squares=sums[-3] / scale**2,
        limits=tuple(limit / scale for limit in LIMITS[shown]),
        counts=tuple(counts[shown]),
    )
