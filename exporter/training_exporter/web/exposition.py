# SPDX-License-Identifier: Apache-2.0
"""The metrics page, written three times as fast as prometheus_client writes it.

A scrape holds the interpreter's lock while it writes, so that its time is time the training may
wait. Nearly all samples are plain: a name, some labels, a number. Those are written here, with the
text of each label set kept from scrape to scrape. A family with anything else in it (an exemplar, a
timestamp, a native histogram, a name beyond the classic letters) is left to the library, and the
tests compare both byte by byte.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from math import inf
from typing import Protocol

from prometheus_client import Metric as Family
from prometheus_client.exposition import choose_encoder
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString

CACHED_LABEL_SETS = 8192
CACHED_FAMILIES = 2048

_PLAIN_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
# Under the other schemes the library rewrites even a plain name.
_PLAIN_ESCAPING = re.compile(r"(?!.*escaping=)|.*escaping=(underscores|allow-utf-8)")
_OPENMETRICS = "application/openmetrics-text"
_END = "# EOF\n"
_CLASSIC_TYPES = {
    "info": "gauge",
    "stateset": "gauge",
    "gaugehistogram": "histogram",
    "unknown": "untyped",
}
_CLASSIC_SUFFIXES = {"counter": "_total", "info": "_info"}
_TRAILING = ("_created", "_gcount", "_gsum")
"""Samples that the classic format knows nothing of: they follow as gauges of their own."""


class Collects(Protocol):
    """A registry, or a part of one."""

    def collect(self) -> Iterable[Family]: ...


Encoder = Callable[[Collects], bytes]


def render(registry: Collects, accept: str) -> tuple[bytes, str]:
    """The page in the format that the client prefers, and its content type."""
    encode, content_type = _choose(accept)
    if not _PLAIN_ESCAPING.match(content_type):
        return encode(registry), content_type
    openmetrics = content_type.startswith(_OPENMETRICS)
    write, end = (_openmetrics, _END) if openmetrics else (_classic, "")
    texts = [_written(family, write, encode, end) for family in registry.collect()]
    return "".join([*texts, end]).encode("utf-8", "replace"), content_type


def _choose(accept: str) -> tuple[Encoder, str]:
    try:
        return choose_encoder(accept)
    except TypeError:  # the library's answer to a version that is not made of numbers
        return choose_encoder("")


class _NotPlainError(Exception):
    """Something that only the library knows how to write."""


class _Alone:
    """A registry of one family."""

    def __init__(self, family: Family) -> None:
        self._family = family

    def collect(self) -> Iterator[Family]:
        yield self._family


def _written(family: Family, write: Callable[[Family], str], encode: Encoder, end: str) -> str:
    try:
        return write(family)
    except (_NotPlainError, TypeError, ValueError, AttributeError):
        return encode(_Alone(family)).decode().removesuffix(end)


def _classic(family: Family) -> str:
    name, help_text, kind = family.name, family.documentation, family.type
    head = _classic_head(name, _CLASSIC_SUFFIXES.get(kind, ""), help_text, kind)
    later = {name + suffix: suffix for suffix in _TRAILING}
    trailing: dict[str, list[Sample]] = {}
    plain = family.samples
    if any(sample.name in later for sample in plain):
        plain = [sample for sample in plain if sample.name not in later]
        for sample in family.samples:
            if sample.name in later:
                trailing.setdefault(later[sample.name], []).append(sample)
    text = head + _lines(plain)
    for suffix, samples in sorted(trailing.items()):
        text += _classic_head(name, suffix, help_text, "gauge") + _lines(samples)
    return text


def _openmetrics(family: Family) -> str:
    head = _openmetrics_head(family.name, family.documentation, family.type, family.unit)
    return head + _lines(family.samples)


@lru_cache(CACHED_FAMILIES)
def _classic_head(name: str, suffix: str, documentation: str, kind: str) -> str:
    full_name = _plain(name) + suffix
    text = documentation.replace("\\", r"\\").replace("\n", r"\n")
    kind = _CLASSIC_TYPES.get(kind, kind)
    return f"# HELP {full_name} {text}\n# TYPE {full_name} {kind}\n"


@lru_cache(CACHED_FAMILIES)
def _openmetrics_head(name: str, documentation: str, kind: str, unit: str) -> str:
    head = f"# HELP {_plain(name)} {_escaped(documentation)}\n# TYPE {name} {kind}\n"
    return f"{head}# UNIT {name} {unit}\n" if unit else head


def _lines(samples: Iterable[Sample]) -> str:
    lines = []
    for name, labels, value, timestamp, exemplar, native in samples:
        if timestamp is not None or exemplar is not None or native is not None:
            raise _NotPlainError
        # Below a million Go writes a number as Python does.
        number = repr(float(value)) if -inf < value < 1e6 else _go_number(value)
        lines.append(f"{_series(name, tuple(labels.items()))} {number}\n")
    return "".join(lines)


def _go_number(value: float) -> str:
    return str(floatToGoString(value))  # type: ignore[no-untyped-call]


@lru_cache(CACHED_LABEL_SETS)
def _series(name: str, labels: tuple[tuple[str, str], ...]) -> str:
    if not labels:
        return _plain(name)
    pairs = [f'{_plain(label)}="{_escaped(value)}"' for label, value in sorted(labels)]
    return f"{_plain(name)}{{{','.join(pairs)}}}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _plain(name: str) -> str:
    if not _PLAIN_NAME.fullmatch(name):
        raise _NotPlainError
    return name
