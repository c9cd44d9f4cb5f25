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
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
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
    except (WireError, ValueError):
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
    block = stream.read(_BLOCK, troubles)[_FILE_HEADER:]
    message = b""
    while block:
        for kind, data in _chunks(block, troubles):
            if kind in (_FULL, _FIRST):
                message = data
            elif message:
                message += data
            if kind in (_FULL, _LAST) and message:
                yield message
                message = b""
        block = stream.read(_BLOCK, troubles)
    if message:
        troubles.note("last record that is cut off and was left out")


def _chunks(block: bytes, troubles: Troubles) -> Iterator[tuple[int, bytes]]:
    place = 0
    while place + _CHUNK.size <= len(block):
        checksum, length, kind = _CHUNK.unpack_from(block, place)
        if not kind and not length:
            return  # the rest of the block is filled up
        data = block[place + _CHUNK.size : place + _CHUNK.size + length]
        if len(data) < length:
            troubles.note("last record that is cut off and was left out")
            return
        if checksum != crc32(data, crc32(bytes([kind]))) or kind > _LAST:
            troubles.note("blocks of records that are damaged, and were read up to there")
            return
        yield kind, data
        place += _CHUNK.size + length
