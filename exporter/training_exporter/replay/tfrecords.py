# SPDX-License-Identifier: Apache-2.0
"""TFRecords, of which TensorBoard's event files are made.

A record is its length, a checksum of that, the event, and a checksum of that: little endian.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from struct import Struct

from training_exporter.replay.crc32c import all_right, masked_crc
from training_exporter.replay.stream import Stream
from training_exporter.replay.trouble import Troubles

HEADER_BYTES, CHECKSUM_BYTES = 12, 4
_HEADER = Struct("<QI")
_LONGEST = 1 << 28
_LONG = 1 << 14
"""Pictures and histograms have so many bytes, and are nothing to us whether damaged or not."""
_PIECE = 1 << 13
"""Bytes that are unpacked at a time: where an archive is damaged, so many are lost."""
_PIECES = 8
"""Pieces whose events are looked at together."""
_KNOWN_HEADERS = 1024

_Checked = tuple[bytes, bytes]
"""An event and its checksum."""


def begins_with_record(start: bytes) -> bool:
    """Whether a file that starts like this is one."""
    if len(start) < HEADER_BYTES:
        return False
    _, checksum = _HEADER.unpack_from(start)
    return bool(checksum == masked_crc(start[:8]))


def short_events(stream: Stream, troubles: Troubles) -> Iterator[list[bytes]]:
    """The events up to where the file is cut off or a length cannot be trusted, without the long.

    Of what is there already many come together; what is being written comes event by event.
    """
    lengths: dict[bytes, int] = {}
    while True:
        block = _what_is_there(stream)
        events, end = _whole(block, lengths)
        yield _undamaged(events, troubles)
        record = block[end:]
        if len(record) < HEADER_BYTES:
            record += stream.read(HEADER_BYTES - len(record), troubles)
        if not record:
            return
        if len(record) < HEADER_BYTES:
            break
        length = _length(record[:HEADER_BYTES])
        if length is None:
            troubles.note("event file that is damaged, and was read up to there")
            return
        size = HEADER_BYTES + length + CHECKSUM_BYTES
        record += stream.read(size - len(record), troubles)
        if len(record) < size:
            break
        yield _undamaged(_whole(record, lengths)[0], troubles)
    troubles.note("last event that is cut off and was left out")


def _what_is_there(stream: Stream) -> bytes:
    """The next bytes, as many as need not be waited for."""
    pieces: list[bytes] = []
    while len(pieces) < _PIECES and (piece := stream.file.read1(_PIECE)):
        pieces.append(piece)
    return b"".join(pieces)


def _whole(block: bytes, lengths: dict[bytes, int]) -> tuple[list[_Checked], int]:
    """The short events whose records are whole, and where the last of all such records ends.

    Args:
        block: records, the last of which may be cut off.
        lengths: those of headers that are known to be right.
    """
    events: list[_Checked] = []
    place, size = 0, len(block)
    while True:
        header = block[place : place + HEADER_BYTES]
        length = lengths.get(header)
        if length is None:
            length = _length(header)
            if length is None:
                return events, place
            if len(lengths) < _KNOWN_HEADERS:
                lengths[header] = length
        start = place + HEADER_BYTES
        end = start + length
        if end + CHECKSUM_BYTES > size:
            return events, place
        place = end + CHECKSUM_BYTES
        if length < _LONG:
            events.append((block[start:end], block[end:place]))


def _length(header: bytes) -> int | None:
    """That of the event, None where it cannot be trusted."""
    if not begins_with_record(header):
        return None
    length = int(_HEADER.unpack(header)[0])
    return length if length <= _LONGEST else None


def _undamaged(events: Sequence[_Checked], troubles: Troubles) -> list[bytes]:
    if all_right(events):
        return [event for event, _ in events]
    right = [event for event, checksum in events if all_right([(event, checksum)])]
    for _ in range(len(events) - len(right)):
        troubles.note("event(|s) that (is|are) damaged and (was|were) left out")
    return right
