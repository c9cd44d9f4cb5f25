# SPDX-License-Identifier: Apache-2.0
"""TensorBoard's event files: TFRecords of `Event`, of which the scalars are read.

A record is its length, a checksum of that, the event, and a checksum of that: little endian,
CRC-32C "masked" as in tensorflow/core/lib/hash/crc32c.h.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct, error, unpack

from training_exporter.replay.stream import Stream
from training_exporter.replay.text_logs import Record
from training_exporter.replay.trouble import Troubles
from training_exporter.replay.wire import WireError, fields_of, signed

STEP, TIME = "_step", "_timestamp"
"""Names that no tag of anybody's has; W&B calls them so."""
HEADER_BYTES = 12
_HEADER = Struct("<QI")
_DOUBLE, _FLOAT, _CHECKSUM = Struct("<d"), Struct("<f"), Struct("<I")
_LONGEST = 1 << 28
_FLOAT32, _FLOAT64 = 1, 2
"""DataType of a tensor."""


def _crc_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 & -(value & 1))
        table.append(value)
    return tuple(table)


_TABLE = _crc_table()


def masked_crc(data: bytes, table: tuple[int, ...] = _TABLE) -> int:
    """The checksum of TFRecords."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def is_event_file(start: bytes) -> bool:
    """Whether a file that starts like this is one."""
    if len(start) < HEADER_BYTES:
        return False
    _, checksum = _HEADER.unpack_from(start)
    return bool(checksum == masked_crc(start[:8]))


def scalars(stream: Stream, troubles: Troubles) -> Iterator[Record]:
    """What was logged at each step, by tag; events of a step that follow on each other are one."""
    together: Record = {}
    for event in _events(stream, troubles):
        try:
            record = _scalars_of(event)
        except (WireError, error):
            troubles.note("events that are damaged and were left out")
            continue
        if record is None:
            continue
        same = together.get(STEP) == record[STEP]
        if same and not any(tag in together for tag in record if tag not in (STEP, TIME)):
            together.update(record)
            continue
        if together:
            yield together
        together = record
    if together:
        yield together


def _events(stream: Stream, troubles: Troubles) -> Iterator[bytes]:
    """The events up to where the file is cut off, or a length cannot be trusted."""
    while header := stream.read(HEADER_BYTES, troubles):
        if len(header) < HEADER_BYTES:
            break
        length, checksum = _HEADER.unpack(header)
        if checksum != masked_crc(header[:8]) or length > _LONGEST:
            troubles.note("event file that is damaged, and was read up to there")
            return
        event = stream.read(length, troubles)
        ending = stream.read(_CHECKSUM.size, troubles)
        if len(event) < length or len(ending) < _CHECKSUM.size:
            break
        # Pictures and histograms are long, and are nothing to us whether damaged or not.
        if _may_have_scalars(event) and _CHECKSUM.unpack(ending)[0] != masked_crc(event):
            troubles.note("events that are damaged and were left out")
            continue
        yield event
    else:
        return
    troubles.note("last event that is cut off and was left out")


def _may_have_scalars(event: bytes) -> bool:
    return len(event) < 1 << 14


def _scalars_of(event: bytes) -> Record | None:
    """Step, time and the scalars of an event, None when there are none in it.

    Event: wall_time = 1, step = 2, summary = 5. Summary: value = 1.
    """
    if not _may_have_scalars(event):
        return None
    record: Record = {STEP: 0}
    found = False
    for number, content in fields_of(event):
        if number == 1 and isinstance(content, bytes):
            record[TIME] = _DOUBLE.unpack(content)[0]
        elif number == 2 and isinstance(content, int):
            record[STEP] = signed(content)
        elif number == 5 and isinstance(content, bytes):
            for inner, value in fields_of(content):
                if inner == 1 and isinstance(value, bytes):
                    tag, scalar = _value(value)
                    if scalar is not None:
                        record[tag] = scalar
                        found = True
    return record if found else None


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
