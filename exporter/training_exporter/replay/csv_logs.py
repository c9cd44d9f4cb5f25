# SPDX-License-Identifier: Apache-2.0
"""Logs that are CSV: commas, semicolons or tabs, with or without quotes."""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Iterator
from itertools import chain

from training_exporter.replay.stream import Stream
from training_exporter.replay.text_logs import Record
from training_exporter.replay.trouble import Troubles

DELIMITERS = ",\t;"
COMMENT = "#"
_COMMENT_MARK = re.compile(rf"{COMMENT}+ *(?=[^{DELIMITERS}])")
_LONGEST_ROW = 20
"""Lines of a row with line breaks in quotes; beyond that a quote was meant for something else."""
_NOT_FINITE = re.compile(rf"(^|[{DELIMITERS}])\s*[+-]?(nan|inf|infinity)\s*$", re.IGNORECASE)
"""A last cell to which no digits belong."""
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d*)?")


def csv_rows(stream: Stream, troubles: Troubles) -> Iterator[Record]:
    """A row on each line below the names of the columns; cells that are empty are not there."""
    header, lines = _header(stream.lines(troubles), troubles)
    delimiter = delimiter_of(header)
    names = _names(_quoted([header], delimiter))
    width = len(names)
    rows = filter(None, _rows(_whole_lines(lines, delimiter, width, troubles), delimiter, width))
    columns = f"{width} column{'s' if width > 1 else ''}"
    number = 0
    for number, cells in enumerate(rows, start=1):
        if len(cells) == width:
            yield {name: cell for name, cell in zip(names, cells, strict=True) if cell}
        else:
            troubles.note(
                f"row(|s) with other than {columns} that (was|were) left out", f"row {number}"
            )
    if header and not number:
        troubles.note("header(|s) without a row")


def delimiter_of(header: str) -> str:
    """What separates the cells; the first of those that may where there is none."""
    return max(DELIMITERS, key=header.count)


def is_number(cell: str) -> bool:
    """Whether it is one, and no name."""
    try:
        float(cell.strip().strip('"').replace(",", "."))
    except ValueError:
        return False
    return True


def _header(lines: Iterator[str], troubles: Troubles) -> tuple[str, Iterator[str]]:
    """The names of the columns, and the lines below.

    Comments above the names are left out. NumPy writes the names as a comment, too: the last one,
    right above the numbers.
    """
    comment = ""
    for line in filter(str.strip, lines):
        line = line.lstrip("\ufeff")
        is_comment = line.startswith(COMMENT)
        if comment and not is_comment and _are_below(comment, line):
            return _COMMENT_MARK.sub("", comment), chain([line], lines)
        if comment:
            troubles.note("comment(|s) above the names of columns that (was|were) left out")
        if not is_comment:
            return line, lines
        comment = line
    return _COMMENT_MARK.sub("", comment), lines


def _are_below(names: str, line: str) -> bool:
    """Whether these are numbers in columns of those names."""
    delimiter = delimiter_of(names)
    cells = line.split(delimiter)
    return len(cells) == names.count(delimiter) + 1 and any(map(is_number, cells))


def _names(cells: list[str]) -> list[str]:
    """A name for each column, also where there is none or where it is there already."""
    names: dict[str, None] = {}
    for number, cell in enumerate(cells, start=1):
        name = cell.strip() or f"column {number}"
        while name in names:
            name = f"{name}.{number}"
        names[name] = None
    return list(names)


def _whole_lines(
    lines: Iterator[str], delimiter: str, width: int, troubles: Troubles
) -> Iterator[str]:
    """Lines that can be trusted: of one that does not end, the last number may lack digits, and is
    left out.

    Where cells are separated by semicolons, a comma is what other countries write for the point.
    """
    commas_are_points = delimiter == ";"
    for line in lines:
        if "\0" in line:
            troubles.note("line(|s) with zero bytes that (was|were) left out")
            continue
        if not line.endswith("\n") and _may_lack_digits(line, delimiter, width):
            troubles.note("last line(|s) that (does|do) not end, without (its|their) last value")
            line = line[: line.rfind(delimiter) + 1]
        yield line.replace(",", ".") if commas_are_points else line


def _may_lack_digits(line: str, delimiter: str, width: int) -> bool:
    """Whether it goes up to the last column, and there is a number of which more may have come."""
    return line.count(delimiter) >= width - 1 and not _NOT_FINITE.search(line)


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
        cells = next(csv.reader(row, delimiter=delimiter, skipinitialspace=True), [])
    except csv.Error:
        return ["".join(row)]
    return [cell.replace(",", "") if _THOUSANDS.fullmatch(cell) else cell for cell in cells]
