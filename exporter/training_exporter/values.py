# SPDX-License-Identifier: Apache-2.0
"""From whatever a trainer logs to a bounded number of series, and to what others can read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from math import inf, isfinite, isnan
from numbers import Real
from types import MappingProxyType
from typing import Any, Final
from zlib import crc32

MAX_NAME = 200

_LONGEST_IN_FILE_NAME = 80
_TEXT_OF: Final = {inf: "Infinity", -inf: "-Infinity"}


def clean_text(text: object) -> str:
    """A label value: valid UTF-8 whatever came in, and not longer than a page can bear."""
    return str(text)[:MAX_NAME].encode("utf-8", "replace").decode().replace("\0", "")


def safe_file_name(text: str) -> str:
    """A part of a file's name, safe on every file system and not too long for any.

    Two texts that differ only in what file names cannot hold get different ones.
    """
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", text)[:_LONGEST_IN_FILE_NAME]
    return safe if safe == text else f"{safe}-{crc32(text.encode('utf-8', 'replace')):08x}"


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


def json_ready(value: Any) -> Any:
    """A value as strict JSON can hold it: NaN and infinities are the texts "NaN", "Infinity" and
    "-Infinity", named tuples are objects."""
    if isinstance(value, float):
        return value if isfinite(value) else "NaN" if isnan(value) else _TEXT_OF[value]
    if hasattr(value, "_asdict"):
        return json_ready(value._asdict())
    if isinstance(value, Mapping):
        return {str(key): json_ready(one) for key, one in value.items()}
    if isinstance(value, tuple | list):
        return [json_ready(one) for one in value]
    return value
