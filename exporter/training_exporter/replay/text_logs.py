# SPDX-License-Identifier: Apache-2.0
"""Logs that are text: JSON lines, CSV, and the Trainer's `trainer_state.json`."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator

from training_exporter.replay.stream import Stream
from training_exporter.replay.trouble import Troubles

Record = dict[str, object]
"""What was logged at one time, by name."""

DELIMITERS = ",\t;"
_CHUNK = 1 << 20
_MAX_OBJECT = 1 << 24
_HISTORY = re.compile(r'"log_history"\s*:\s*\[')


def json_lines(stream: Stream, troubles: Troubles) -> Iterator[Record]:
    """An object on each line, bare NaN and Infinity included."""
    decode = json.JSONDecoder().decode
    for number, line in enumerate(stream.lines(troubles), start=1):
        try:
            record = decode(line)
        except (ValueError, RecursionError):
            if line.strip():
                troubles.note("lines that are no whole JSON and were left out", f"line {number}")
            continue
        if type(record) is dict:
            yield record
        else:
            troubles.note("lines that are no JSON object and were left out", f"line {number}")


def csv_rows(stream: Stream, troubles: Troubles) -> Iterator[Record]:
    """A row on each line below the names of the columns; cells that are empty are not there."""
    lines = stream.lines(troubles)
    header = next(lines, "").lstrip("\ufeff")
    delimiter = max(DELIMITERS, key=header.count)
    names = [name.strip() for name in next(csv.reader([header], delimiter=delimiter), [])]
    rows = csv.reader(_whole_lines(lines, troubles), delimiter=delimiter)
    width = len(names)
    while True:
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error:
            troubles.note("rows that are no CSV and were left out", f"line {rows.line_num + 1}")
            continue
        if len(cells) == width:
            yield {name: cell for name, cell in zip(names, cells, strict=True) if cell}
        elif cells:
            troubles.note(
                f"rows with other than {width} columns that were left out",
                f"line {rows.line_num + 1}",
            )


def _whole_lines(lines: Iterator[str], troubles: Troubles) -> Iterator[str]:
    """Lines that can be trusted: of one that does not end, the last number may lack digits."""
    for line in lines:
        if "\0" in line:
            troubles.note("lines with zero bytes that were left out")
        elif line.endswith("\n"):
            yield line
        else:
            troubles.note("last line that does not end and was left out")


def trainer_state(stream: Stream, troubles: Troubles) -> Iterator[Record]:
    """What a Trainer logged; what it says of the whole run at its end is left out.

    The file is one JSON object, of which only the history is read, and that piece by piece.
    """
    buffer = ""
    while not (found := _HISTORY.search(buffer)):
        chunk = stream.read(_CHUNK, troubles)
        if not chunk:
            troubles.note('file without the "log_history" of a trainer_state.json')
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
                troubles.note("file that is cut off or damaged, and was read up to there")
                return
            buffer, place = buffer[place:] + chunk.decode("utf-8", "replace"), 0
            continue
        if type(record) is dict:
            yield record
