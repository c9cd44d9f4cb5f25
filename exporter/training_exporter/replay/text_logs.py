# SPDX-License-Identifier: Apache-2.0
"""Logs that are JSON: an object on each line, and the Trainer's `trainer_state.json`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from training_exporter.replay.stream import Stream
from training_exporter.replay.trouble import Troubles

Record = dict[str, object]
"""What was logged at one time, by name. An empty one says that nothing more belongs to the last."""

_CHUNK = 1 << 20
_MAX_OBJECT = 1 << 24
_DEEPEST = 4
"""How deep objects within objects are looked at."""
_HISTORY = re.compile(r'"log_history"\s*:\s*\[')


def json_lines(stream: Stream, troubles: Troubles) -> Iterator[Record]:
    """An object on each line, bare NaN and Infinity included; names of nested values are joined by
    dots."""
    decode = json.JSONDecoder().decode
    for number, line in enumerate(stream.lines(troubles), start=1):
        try:
            record = decode(line)
        except (ValueError, RecursionError):
            if line.strip():
                troubles.note(
                    "line(|s) that (is|are) no whole JSON and (was|were) left out", f"line {number}"
                )
            continue
        if type(record) is dict:
            yield _flat(record) if "{" in line[1:] else record
        else:
            troubles.note(
                "line(|s) that (is|are) no JSON object and (was|were) left out", f"line {number}"
            )


def _flat(record: Record, prefix: str = "", depth: int = 1) -> Record:
    """A record without objects in it, but for those that are too deep to be meant."""
    flat: Record = {}
    for name, value in record.items():
        if isinstance(value, dict) and depth < _DEEPEST:
            flat.update(_flat(value, f"{prefix}{name}.", depth + 1))
        else:
            flat[prefix + name] = value
    return flat


def trainer_state(stream: Stream, troubles: Troubles) -> Iterator[Record]:
    """What a Trainer logged; what it says of the whole run at its end is left out.

    The file is one JSON object, of which only the history is read, and that piece by piece.
    """
    buffer = ""
    while not (found := _HISTORY.search(buffer)):
        chunk = stream.read(_CHUNK, troubles)
        if not chunk:
            troubles.note('file(|s) without the "log_history" of a trainer_state.json')
            return
        buffer = buffer[-64:] + chunk.decode("utf-8", "replace")
    for record in _objects(buffer[found.end() :], stream, troubles):
        if "train_runtime" not in record or "loss" in record:
            yield record


def _objects(buffer: str, stream: Stream, troubles: Troubles) -> Iterator[Record]:
    """The objects of a JSON array, up to its end or to where the file is cut off or damaged."""
    raw_decode = json.JSONDecoder().raw_decode
    separators = re.compile(r"[\s,]*")
    place = 0
    while True:
        match = separators.match(buffer, place)
        assert match is not None  # it matches nothing, too
        place = match.end()
        if buffer.startswith("]", place):
            return
        try:
            record, place = raw_decode(buffer, place)
        except (ValueError, RecursionError):
            # Half an object, as at the end of each piece, unless no more comes.
            chunk = stream.read(_CHUNK, troubles) if len(buffer) - place < _MAX_OBJECT else b""
            if not chunk:
                troubles.note(
                    "file(|s) that (is|are) cut off or damaged, and (was|were) read up to there"
                )
                return
            buffer, place = buffer[place:] + chunk.decode("utf-8", "replace"), 0
            continue
        if type(record) is dict:
            yield record
