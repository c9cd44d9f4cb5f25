# SPDX-License-Identifier: Apache-2.0
"""The `run-*.wandb` file of a W&B run: what was logged at each step.

It is a LevelDB log (https://github.com/google/leveldb/blob/main/doc/log_format.md) with a header of
its own and CRC-32 as its checksum, of `Record` messages of wandb's `wandb_internal.proto`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from struct import Struct
from zlib import crc32

from training_exporter.replay.stream import Stream
from training_exporter.replay.text_logs import Record
from training_exporter.replay.trouble import Troubles
from training_exporter.replay.wire import WireError, fields_of

MAGIC = b":W&B"
_FILE_HEADER = 7
_BLOCK = 1 << 15
_CHUNK = Struct("<IHB")
_DAMAGE, _FULL, _FIRST, _MIDDLE, _LAST = 0, 1, 2, 3, 4
_HISTORY = 2
"""Number of `history` in `Record`."""


def history(stream: Stream, troubles: Troubles) -> Iterator[Record]:
    """What was logged, by name; names of nested values are joined by dots."""
    for message in _messages(stream, troubles):
        yield from _history_of(message, troubles)


def _history_of(message: bytes, troubles: Troubles) -> Iterator[Record]:
    try:
        for number, content in fields_of(message):
            if number == _HISTORY and isinstance(content, bytes):
                yield _logged(content)
    except (WireError, ValueError, RecursionError):
        troubles.note("records that are damaged and were left out")


def _logged(message: bytes) -> Record:
    """HistoryRecord: item = 1. HistoryItem: key = 1, nested_key = 2, value_json = 16."""
    record: Record = {}
    for number, item in fields_of(message):
        if number != 1 or not isinstance(item, bytes):
            continue
        keys, value = [], b"null"
        for inner, content in fields_of(item):
            if inner in (1, 2) and isinstance(content, bytes):
                keys.append(content.decode("utf-8", "replace"))
            elif inner == 16 and isinstance(content, bytes):
                value = content
        record[".".join(filter(None, keys))] = json.loads(value)
    return record


def _messages(stream: Stream, troubles: Troubles) -> Iterator[bytes]:
    """The messages whose checksums are right. After a damage, those from the next block on."""
    message = b""
    for kind, data in _chunks(stream, troubles):
        if kind in (_FULL, _FIRST):
            message = data
        elif message and kind != _DAMAGE:
            message += data
        else:
            message = b""
        if kind in (_FULL, _LAST) and message:
            yield message
            message = b""
    if message:
        troubles.note("last record that is cut off and was left out")


def _chunks(stream: Stream, troubles: Troubles) -> Iterator[tuple[int, bytes]]:
    """Kind and data of each chunk, as soon as it is there; a damage is one without data."""
    left = _BLOCK - len(stream.read(_FILE_HEADER, troubles))
    while True:
        if left < _CHUNK.size:  # too little for a chunk, and filled up
            stream.read(left, troubles)
            left = _BLOCK
        header = stream.read(_CHUNK.size, troubles)
        if len(header) < _CHUNK.size:
            if header:
                troubles.note("last record that is cut off and was left out")
            return
        left -= _CHUNK.size
        checksum, length, kind = _CHUNK.unpack(header)
        nothing = not length and not kind  # the rest of the block is filled up
        fits = length <= left and not nothing
        size = length if fits else left
        data = stream.read(size, troubles)
        if len(data) < size:
            troubles.note("last record that is cut off and was left out")
            return
        left -= size
        if nothing:
            continue
        if not fits or kind > _LAST or checksum != crc32(data, crc32(bytes([kind]))):
            troubles.note("blocks of records that are damaged, and were read up to there")
            stream.read(left, troubles)
            left = _BLOCK
            yield _DAMAGE, b""
            continue
        yield kind, data
