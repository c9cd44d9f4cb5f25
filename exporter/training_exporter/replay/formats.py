# SPDX-License-Identifier: Apache-2.0
"""The formats of logs, and which of them a file has."""

from __future__ import annotations

import json
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from training_exporter.replay import csv_logs, text_logs, tfevents, wandb_runs
from training_exporter.replay.stream import DAMAGED_GZIP, Stream
from training_exporter.replay.text_logs import Record
from training_exporter.replay.tfrecords import begins_with_record
from training_exporter.replay.trouble import ReplayError, Troubles

_START = 1 << 16
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
    except DAMAGED_GZIP as error:
        raise ReplayError(f"{path} is a damaged archive: {error}") from None
    finally:
        stream.close()
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
    known = _text_format(start)
    if known is None:
        unknown = f"{path} is no log of a known format; expected {EXPECTED}"
        raise NotYetError(unknown) if _has_just_begun(start) else ReplayError(unknown)
    return known


def _has_just_begun(start: bytes) -> bool:
    """Whether the next bytes may show what it is: half a line, or the head of a state."""
    return len(start) < _START and (b"\n" not in start or start.lstrip().startswith(b"{"))


def _text_format(start: bytes) -> Format | None:
    text = start.decode("utf-8", "replace").lstrip("\ufeff")
    first = next(filter(str.strip, text.split("\n")), "")
    if text.lstrip().startswith("{"):
        try:
            record = json.loads(first)
        except (ValueError, RecursionError):
            return TRAINER_STATE if '"log_history"' in text else _if_lines(text)
        return TRAINER_STATE if "log_history" in record else JSON_LINES
    readable = "\0" not in first and "\ufffd" not in first
    if readable and any(mark in first for mark in csv_logs.DELIMITERS):
        return CSV
    return None


def _if_lines(text: str) -> Format | None:
    """JSON lines whose first one is damaged."""
    return JSON_LINES if any(map(_is_object, text.split("\n")[1:])) else None


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
