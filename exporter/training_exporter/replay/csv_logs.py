# SPDX-License-Identifier: Apache-2.0
"""Logs that are CSV: commas, semicolons or tabs, with or without quotes."""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Iterator

from training_exporter.replay.stream import Stream
from training_exporter.replay.text_logs import Record
from training_exporter.replay.trouble import Troubles

DELIMITERS = ",\t;"
_LONGEST_ROW = 20
"""Lines of a row with line breaks in quotes; beyond that a quote was meant for something else."""
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d*)?")


def csv_rows(stream: Stream, troubles: Troubles) -> Iterator[Record]:
    """A row on each line below the names of the columns; cells that are empty are not there."""
    lines = stream.lines(troubles)
    header = next(filter(str.strip, lines), "").lstrip("\ufeff")
    delimiter = max(DELIMITERS, key=header.count)
    names = _names(_quoted([header], delimiter))
    width = len(names)
    rows = _rows(_whole_lines(lines, delimiter, troubles), delimiter, width)
    for number, cells in enumerate(rows, start=1):
        if len(cells) == width:
            yield {name: cell for name, cell in zip(names, cells, strict=True) if cell}
        elif cells:
            troubles.note(
                f"rows with other than {width} columns that were left out", f"row {number}"
            )


def _names(cells: list[str]) -> list[str]:
    """A name for each column, also where there is none or where it is there already."""
    names: dict[str, None] = {}
    for number, cell in enumerate(cells, start=1):
        name = cell.strip() or f"column {number}"
        while name in names:
            name = f"{name}.{number}"
        names[name] = None
    return list(names)


def _whole_lines(lines: Iterator[str], delimiter: str, troubles: Troubles) -> Iterator[str]:
    """Lines that can be trusted: of one that does not end, the last number may lack digits.

    Where cells are separated by semicolons, a comma is what other countries write for the point.
    """
    commas_are_points = delimiter == ";"
    for line in lines:
        if "\0" in line:
            troubles.note("lines with zero bytes that were left out")
        elif line.endswith("\n"):
            yield line.replace(",", ".") if commas_are_points else line
        else:
            troubles.note("last line that does not end and was left out")


def _rows(lines: Iterator[str], delimiter: str, width: int) -> Iterator[list[str]]:
    """The cells of each row."""
    again: deque[str] = deque()
    while (line := again.popleft() if again else next(lines, None)) is not None:
        if '"' not in line:
            line = line.rstrip("\r\n")
            yield line.split(delimiter) if line else []
            continue
        row, is_open = [line], line.count('"') % 2
        while is_open and len(row) < _LONGEST_ROW:
            more = again.popleft() if again else next(lines, None)
            if more is None:
                break
            row.append(more)
            is_open ^= more.count('"') % 2
        cells = _quoted(row, delimiter)
        if is_open or (len(row) > 1 and len(cells) != width):
            # The quote is a damage: what seemed to be within it are rows of their own.
            again.extendleft(reversed(row[1:]))
            cells = line.rstrip("\r\n").replace('"', "").split(delimiter)
        yield cells


def _quoted(row: list[str], delimiter: str) -> list[str]:
    """The cells of a row with quotes; none where it is no CSV."""
    try:
        cells = next(csv.reader(row, delimiter=delimiter), [])
    except csv.Error:
        return ["".join(row)]
    return [cell.replace(",", "") if _THOUSANDS.fullmatch(cell) else cell for cell in cells]
