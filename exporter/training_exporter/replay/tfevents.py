# SPDX-License-Identifier: Apache-2.0
"""TensorBoard's event files: TFRecords of `Event`, of which the scalars are read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import chain
from struct import Struct, error, unpack

from training_exporter.replay.stream import Stream
from training_exporter.replay.text_logs import Record
from training_exporter.replay.tfrecords import short_events
from training_exporter.replay.trouble import Troubles
from training_exporter.replay.wire import WireError, fields_of, signed, varint

STEP, TIME = "_step", "_timestamp"
"""Names that no tag of anybody's has; W&B calls them so."""
_DOUBLE, _FLOAT = Struct("<d"), Struct("<f")
_FLOAT32, _FLOAT64 = 1, 2
"""DataType of a tensor."""
_USUAL = re.compile(rb"\x09(.{8})\x10([\x80-\xff]{0,8}[\x00-\x7f])(.{0,256})(.{4})", re.DOTALL)
"""Time, step, what makes it a value of a tag, and the value, as all writers put a simple one."""

Scalars = tuple[int, float | None, dict[str, float]]
"""Step, time and the scalars of an event, by tag."""


def scalars(stream: Stream, troubles: Troubles) -> Iterator[Record]:
    """What was logged at each step, by tag; events of a step that follow on each other are one.

    After the last of a step comes an empty record: nothing more belongs to it, and it need not wait
    for the next step to be whole, too.
    """
    together: Record = {}
    for event in chain.from_iterable(short_events(stream, troubles)):
        try:
            step, time, values = scalars_of(event)
        except (WireError, error):
            troubles.note("event(|s) that (is|are) damaged and (was|were) left out")
            continue
        if not values:
            continue
        if together.get(STEP) != step or not together.keys().isdisjoint(values):
            if together:
                yield together
                if together[STEP] != step:
                    yield {}
            together = {STEP: step}
        if time is not None:
            together.setdefault(TIME, time)  # what follows within a step was only logged later
        together.update(values)
    if together:
        yield together


def scalars_of(event: bytes) -> Scalars:
    """What is in an event.

    Most are like one before but for time, step and value, and need not be taken apart again.

    Raises:
        WireError, struct.error: when it is no event.
    """
    usual = _USUAL.fullmatch(event)
    if usual is not None:
        time, step, start, value = usual.groups()
        tag = _tag_of(start)
        if tag is not None:
            return _step_of(step), _DOUBLE.unpack(time)[0], {tag: _FLOAT.unpack(value)[0]}
    return any_scalars_of(event)


@lru_cache(maxsize=64)
def _step_of(number: bytes) -> int:
    return varint(number, 0)[0]


@lru_cache(maxsize=4096)
def _tag_of(start: bytes) -> str | None:
    """The tag, where this and any four bytes are a summary of one value, which those bytes are."""
    value = bytes(4)
    try:
        match list(fields_of(start + value)):
            case [(5, bytes(summary))]:
                match list(fields_of(summary)):
                    case [(1, bytes(message))] if list(fields_of(message))[-1:] == [(2, value)]:
                        return _value(message)[0]
    except (WireError, error):
        pass
    return None


def any_scalars_of(event: bytes) -> Scalars:
    """What is in an event, whoever wrote it.

    Event: wall_time = 1, step = 2, summary = 5. Summary: value = 1.

    Raises:
        WireError, struct.error: when it is none.
    """
    step, time = 0, None
    values: dict[str, float] = {}
    for number, content in fields_of(event):
        if number == 1 and isinstance(content, bytes):
            time = _DOUBLE.unpack(content)[0]
        elif number == 2 and isinstance(content, int):
            step = signed(content)
        elif number == 5 and isinstance(content, bytes):
            for inner, value in fields_of(content):
                if inner == 1 and isinstance(value, bytes):
                    tag, scalar = _value(value)
                    if scalar is not None:
                        values[tag] = scalar
    return step, time, values


def _value(message: bytes) -> tuple[str, float | None]:
    """Summary.Value: tag = 1, simple_value = 2, tensor = 8."""
    tag, scalar = "", None
    for number, content in fields_of(message):
        if not isinstance(content, bytes):
            continue
        if number == 1:
            tag = content.decode("utf-8", "replace")
        elif number == 2:
            scalar = _FLOAT.unpack(content)[0]
        elif number == 8:
            scalar = _tensor(content)
    return tag, scalar


def _tensor(message: bytes) -> float | None:
    """TensorProto of one number: dtype = 1, tensor_content = 4, float_val = 5, double_val = 6."""
    dtype, values = 0, b""
    for number, content in fields_of(message):
        if number == 1 and isinstance(content, int):
            dtype = content
        elif number in (4, 5, 6) and isinstance(content, bytes):
            values = content
    form, size = {_FLOAT32: ("<f", 4), _FLOAT64: ("<d", 8)}.get(dtype, ("", -1))
    return float(unpack(form, values)[0]) if len(values) == size else None
