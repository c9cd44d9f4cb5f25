# SPDX-License-Identifier: Apache-2.0
"""Numbers and times as a person reads them."""

from __future__ import annotations

from math import inf, isfinite, isnan

UNKNOWN = "\N{EN DASH}"
_MINUS = "\N{MINUS SIGN}"
_THIN = "\N{NARROW NO-BREAK SPACE}"


def number(value: float | None, digits: int = 4) -> str:
    """A few significant digits; NaN and infinity by name, a dash for what is not known."""
    if value is None:
        return UNKNOWN
    if isnan(value):
        return "NaN"
    if not isfinite(value):
        return "+Inf" if value == inf else f"{_MINUS}Inf"
    text = f"{value:,.0f}" if 10_000 <= abs(value) < 1e9 else f"{value:,.{digits}g}"
    mantissa, e, exponent = text.partition("e")
    return (f"{mantissa}e{int(exponent)}" if e else text).replace("-", _MINUS)


def count(value: float | None) -> str:
    """A whole number with its thousands apart; above a million the leading digits."""
    if value is None:
        return UNKNOWN
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if abs(value) >= 10 * size:
            return f"{value / size:,.1f}{_THIN}{letter}"
    return f"{value:,.0f}"


def share(part: float, whole: float) -> str:
    """A percentage that shows 100 % only for the whole."""
    percent = 100 * part / whole
    if part < whole:
        percent = min(percent, 99.9)
    return f"{percent:.1f}{_THIN}%"


def duration(seconds: float | None) -> str:
    """The two largest units of a time, milliseconds for a short one."""
    if seconds is None or not isfinite(seconds):
        return UNKNOWN
    if seconds < 1:
        return f"{1000 * seconds:.3g}{_THIN}ms"
    if seconds < 60:
        return f"{seconds:.3g}{_THIN}s"
    for size, unit, smaller, smaller_unit in (
        (86_400, "d", 3_600, "h"),
        (3_600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if seconds >= size:
            whole, rest = divmod(int(seconds), size)
            return f"{whole:,}{_THIN}{unit} {rest // smaller}{_THIN}{smaller_unit}"
    raise AssertionError(seconds)


def ago(timestamp: float, now: float) -> str:
    """Roughly how long ago; clocks that differ a little do not make it the future."""
    seconds = int(max(0.0, now - timestamp))
    if seconds < 1:
        return "just now"
    sizes = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))
    size, unit = next((size, unit) for size, unit in sizes if seconds >= size)
    return f"{seconds // size:,}{_THIN}{unit} ago"
