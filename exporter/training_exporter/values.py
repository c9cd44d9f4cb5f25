# SPDX-License-Identifier: Apache-2.0
"""From whatever a trainer logs to a bounded number of series."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from numbers import Real
from types import MappingProxyType

MAX_NAME = 200


def clean_text(text: object) -> str:
    """A label value: valid UTF-8 whatever came in, and not longer than a page can bear."""
    return str(text)[:MAX_NAME].encode("utf-8", "replace").decode().replace("\0", "")


def numbers_of(values: Mapping[str, object]) -> dict[str, float]:
    """The numbers among the values, NaN and Inf included; bools and all else are left out, tensors
    on a device too: to read one may wait for it."""
    numbers = {}
    for name, value in values.items():
        # A tensor on the CPU is there already; any other may have to be waited for.
        if getattr(value, "is_cpu", False) and value.numel() == 1:  # type: ignore[attr-defined]
            value = value.tolist()  # type: ignore[attr-defined]
        if isinstance(value, Real) and not isinstance(value, bool):
            with suppress(OverflowError):  # a whole number that no float can hold
                numbers[clean_text(name)] = float(value)
    return numbers


def merge_capped(
    known: Mapping[str, float], new: Mapping[str, float], most: int
) -> tuple[Mapping[str, float], int]:
    """Known values updated by new ones, with at most `most` names, and how many were dropped.

    Names that are known already always get through, so that a series never stops because another
    one came up.
    """
    merged = dict(known)
    dropped = 0
    for name, value in new.items():
        if name in merged or len(merged) < most:
            merged[name] = value
        else:
            dropped += 1
    return MappingProxyType(merged), dropped
