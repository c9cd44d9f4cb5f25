# SPDX-License-Identifier: Apache-2.0
"""The formats of logs, and which of them a file has."""

from __future__ import annotations

import json
import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from training_exporter.replay import csv_logs, text_logs, tfevents, wandb_runs
from training_exporter.replay.stream import Stream
from training_exporter.replay.text_logs import Record
from training_exporter.replay.tfrecords import begins_with_record
from training_exporter.replay.trouble import ReplayError, Troubles

_START = 1 << 16
_BINARY = re.compile(r"[\0-\x08\x0e-\x1f]")
_WORD = re.compile(r"[^\W\d]\S*")
EXPECTED = (
    "a Hugging Face trainer_state.json or its checkpoint or output folder, JSON lines such as"
    " trainer_log.jsonl, CSV such as Lightning's metrics.csv, TensorBoard event files or their"
    " folder, or a W&B run's folder or .wandb file"
)


@dataclass(frozen=True)
class Format:
    """A kind of log.

    Attributes:
        name: as a person calls it.
        read: the records of one file.
        pattern: what its files are called in a folder.
        step: name of the step in a record, where the format itself says it.
    """

    name: str
    read: Callable[[Stream, Troubles], Iterator[Record]]
    pattern: str
    step: str | None = None


TRAINER_STATE = Format("Hugging Face trainer state", text_logs.trainer_state, "trainer_state.json")
JSON_LINES = Format("JSON lines", text_logs.json_lines, "trainer_log.jsonl")
CSV = Format("CSV", csv_logs.csv_rows, "metrics.csv")
EVENTS = Format("TensorBoard events", tfevents.scalars, "*tfevents*", step=tfevents.STEP)
WANDB = Format("W&B run", wandb_runs.history, "*.wandb")


class NotYetError(ReplayError):
    """Nothing can be replayed so far; it may come while the run goes on."""


def format_of(path: Path) -> Format:
    """The format of a file, by what is in it and not by its name.

    Raises:
        NotYetError: there is too little in it to know.
        ReplayError: it has none that is known.
        OSError: it cannot be read.
    """
    stream = Stream(path)
    try:
        start = stream.file.read(_START)
    finally:
        stream.close()
    if not start and stream.damage is not None:
        raise ReplayError(f"{path} is a damaged archive: {stream.damage}")
    if not start.strip():
        raise NotYetError(f"{path} is empty; expected {EXPECTED}")
    if start.startswith(wandb_runs.MAGIC):
        return WANDB
    if begins_with_record(start):
        return EVENTS
    if start.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        raise ReplayError(
            f"{path} is UTF-16; expected UTF-8, such as iconv -f UTF-16 -t UTF-8 makes"
        )
    text = start.decode("utf-8", "replace").lstrip("\ufeff")
    if _ends_lines_with_cr(text):
        raise ReplayError(
            f"{path} has lines that end with CR; expected LF or CR LF, such as tr '\\r' '\\n' makes"
        )
    known = _text_format(text)
    if known is None:
        unknown = f"{path} is no log of a known format; expected {EXPECTED}"
        has_just_begun = len(start) < _START and _has_just_begun(text)
        raise NotYetError(unknown) if has_just_begun else ReplayError(unknown)
    return known


def _ends_lines_with_cr(text: str) -> bool:
    """Whether it is a log but for that; nothing else that we read has lines like that."""
    if "\n" in text or "\r" not in text.strip():
        return False
    return _text_format(text.replace("\r", "\n")) is not None


def _has_just_begun(text: str) -> bool:
    """Whether the next bytes may show what it is: half a line, one line of text, or the head of a
    state."""
    is_one_line = len(_lines_of(text)) < 2 and not _BINARY.search(text)
    return is_one_line or "\n" not in text or text.lstrip().startswith("{")


def _text_format(text: str) -> Format | None:
    if text.lstrip().startswith("{"):
        first = next(filter(str.strip, text.split("\n")))
        try:
            record = json.loads(first)
        except (ValueError, RecursionError):
            return TRAINER_STATE if '"log_history"' in text else _if_lines(text)
        return TRAINER_STATE if "log_history" in record else JSON_LINES
    lines = _lines_of(text)
    if 2 * sum(map(_is_object, lines)) >= len(lines) > 0:
        return JSON_LINES
    return CSV if _is_table(lines or text.split("\n")) else None


def _lines_of(text: str) -> list[str]:
    """Those with something in them that is no comment."""
    lines = filter(str.strip, text.split("\n"))
    return [line for line in lines if not line.startswith(csv_logs.COMMENT)]


def _is_table(lines: Sequence[str]) -> bool:
    """Whether the first is a row of several cells, or a name above numbers."""
    first = lines[0]
    if _BINARY.search(first) or 2 * first.count("\ufffd") > len(first):
        return False
    if any(mark in first for mark in csv_logs.DELIMITERS):
        return True
    name = first.strip().strip('"')
    return bool(_WORD.fullmatch(name)) and any(map(csv_logs.is_number, lines[1:2]))


def _if_lines(text: str) -> Format | None:
    """JSON lines whose first one is damaged."""
    return JSON_LINES if any(map(_is_object, text.split("\n")[1:])) else None


def _is_object(line: str) -> bool:
    if not line.lstrip().startswith("{"):
        return False
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
