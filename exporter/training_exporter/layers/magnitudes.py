# SPDX-License-Identifier: Apache-2.0
"""How large the values in the gradients are, by powers of two."""

from __future__ import annotations

from collections.abc import Sequence
from math import frexp
from typing import Final, NamedTuple

LOWEST: Final = -40
HIGHEST: Final = 20
BOUNDS: Final = tuple([2.0**exponent for exponent in range(LOWEST, HIGHEST + 1)])
"""Upper bounds of the buckets, which include them; another bucket has what is above."""

RAW_LOWEST: Final = -126
RAW_HIGHEST: Final = 128
"""Exponents of the bounds as values lie in memory, loss scale included: those of float32."""

FLUSHED: Final = -25
"""float16 has nothing between 0 and 2**-24, and rounds 2**-25, which lies midway, to the even one
of the two, which is 0. So 0 becomes of all up to and including 2**-25."""

SUBNORMAL_END: Final = 2.0**-14 - 2.0**-25
"""From here on a value is a normal number in float16. It lies midway between the largest subnormal
number and the smallest normal one, 2**-14, which is the even one."""


class RawCounts(NamedTuple):
    """What one device counted in gradients as they lie in memory, which is with the loss scale.

    Attributes:
        by_exponent: values above 2**(e-1) and up to 2**e, for e from RAW_LOWEST to RAW_HIGHEST;
            zeros are in the first, what is not finite in the last.
        zeros: values that are 0.
        small: values below SUBNORMAL_END, zeros included.
        non_finite: NaN and Inf.
        sum: of the magnitudes that are finite.
    """

    by_exponent: Sequence[float]
    zeros: float
    small: float
    non_finite: float
    sum: float


class Magnitudes(NamedTuple):
    """One pass over the gradients that are on this process.

    Attributes:
        counts: finite values in each bucket of BOUNDS, without the loss scale, and above them;
            None if the loss scale is not known, or no power of two: then a bucket of values in
            memory lies across two of them.
        sum: sum of the finite magnitudes, without the loss scale.
        values: how many there were, NaN and Inf included.
        zeros: those that are 0.
        flushed: those that are not, and that float16 would round to 0.
        subnormal: those that float16 can hold only as subnormal numbers, with fewer digits.
        non_finite: NaN and Inf.
    """

    counts: tuple[int, ...] | None
    sum: float
    values: int
    zeros: int
    flushed: int
    subnormal: int
    non_finite: int


class MagnitudeTotals(NamedTuple):
    """All passes so far.

    Attributes:
        counts, sum: added up over the passes that have them.
        last: the last pass that met a gradient, None before the first.
    """

    counts: tuple[int, ...] = (0,) * (len(BOUNDS) + 1)
    sum: float = 0.0
    last: Magnitudes | None = None

    def plus(self, found: Magnitudes) -> MagnitudeTotals:
        if not found.values:
            return self
        if found.counts is None:
            return self._replace(last=found)
        counts = tuple([a + b for a, b in zip(self.counts, found.counts, strict=True)])
        return MagnitudeTotals(counts, self.sum + found.sum, found)


def combine(devices: Sequence[RawCounts], scale: float | None) -> Magnitudes:
    """One pass from what each device counted.

    Args:
        devices: what they counted.
        scale: the loss scale that is in the gradients, None if it is not known.
    """
    if not devices:
        return Magnitudes(None, 0.0, 0, 0, 0, 0, 0)
    raw = [round(sum(counts)) for counts in zip(*[d.by_exponent for d in devices], strict=True)]
    zeros, small, non_finite = (
        round(sum(counts)) for counts in zip(*[d[1:4] for d in devices], strict=True)
    )
    values = sum(raw)
    up_to_flushed = sum(raw[: FLUSHED - RAW_LOWEST + 1])
    raw[-1] -= non_finite
    shift = _exponent(scale)
    return Magnitudes(
        counts=None if shift is None else _folded(raw, shift),
        sum=sum([d.sum for d in devices]) / scale if scale else 0.0,
        values=values,
        zeros=zeros,
        flushed=up_to_flushed - zeros,
        subnormal=small - up_to_flushed,
        non_finite=non_finite,
    )


def _exponent(scale: float | None) -> int | None:
    """Of a power of two; None for anything else."""
    if scale is None:
        return None
    mantissa, exponent = frexp(scale)
    return exponent - 1 if mantissa == 0.5 else None


def _folded(raw: Sequence[int], shift: int) -> tuple[int, ...]:
    """The buckets of BOUNDS from those in memory, whose exponents are higher by `shift`."""
    counts = [0] * (len(BOUNDS) + 1)
    for exponent, count in enumerate(raw, RAW_LOWEST - shift):
        counts[min(max(exponent - LOWEST, 0), len(BOUNDS))] += count
    return tuple(counts)
