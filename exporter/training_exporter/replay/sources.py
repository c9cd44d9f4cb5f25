# SPDX-License-Identifier: Apache-2.0
"""What a path is: a file or folder of a known format, and the records in it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from training_exporter.replay import text_logs, tfevents, wandb_runs
from training_exporter.replay.stream import DAMAGED_GZIP, Stream
from training_exporter.replay.text_logs import Record
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
        step: name of the step in a record, where the format itself says it.
        grows: whether it can be followed while it is written, row by row.
    """

    name: str
    read: Callable[[Stream, Troubles], Iterator[Record]]
    step: str | None = None
    grows: bool = False


TRAINER_STATE = Format("Hugging Face trainer state", text_logs.trainer_state)
JSON_LINES = Format("JSON lines", text_logs.json_lines, grows=True)
CSV = Format("CSV", text_logs.csv_rows, grows=True)
EVENTS = Format("TensorBoard events", tfevents.scalars, step=tfevents.STEP, grows=True)
WANDB = Format("W&B run", wandb_runs.history)


class Source:
    """A log: its files and their format.

    Attributes:
        total_bytes: size of the files.
    """

    def __init__(self, kind: Format, paths: Sequence[Path]) -> None:
        self.format = kind
        self.paths = tuple(paths)
        self.total_bytes = sum(path.stat().st_size for path in paths)
        self._done = 0
        self._stream: Stream | None = None

    @property
    def position(self) -> int:
        """Bytes that were read so far."""
        return self._done + (self._stream.position if self._stream else 0)

    def records(
        self, troubles: Troubles, wait: Callable[[], bool] = lambda: False
    ) -> Iterator[Record]:
        """All that was logged, in the order of the files.

        Args:
            troubles: takes what is wrong.
            wait: waits at the end of the last file for more to be written; False when no more is
                to be waited for.
        """
        for path in self.paths:
            self._stream = stream = Stream(path, wait) if path is self.paths[-1] else Stream(path)
            try:
                yield from self.format.read(stream, troubles)
            finally:
                self._stream = None
                stream.close()
            self._done += path.stat().st_size


def find_source(path: Path, troubles: Troubles) -> Source:
    """What lies at a path.

    Raises:
        ReplayError: nothing that can be read, saying what was expected.
    """
    if not path.exists():
        raise ReplayError(f"there is no {path}")
    try:
        return _in_folder(path, troubles) if path.is_dir() else Source(_format_of(path), [path])
    except OSError as error:
        raise ReplayError(f"cannot read {path}: {error.strerror or error}") from None


def _in_folder(folder: Path, troubles: Troubles) -> Source:
    states = [*folder.glob("trainer_state.json"), *folder.glob("checkpoint-*/trainer_state.json")]
    if states:
        return Source(TRAINER_STATE, [max(states, key=_steps_in_name)])
    for kind, pattern in (
        (EVENTS, "*tfevents*"),
        (WANDB, "*.wandb"),
        (JSON_LINES, "trainer_log.jsonl"),
        (CSV, "metrics.csv"),
    ):
        found = [path for path in folder.rglob(pattern) if path.is_file() and path.stat().st_size]
        if found:
            return _one_run(kind, folder, found, troubles)
    raise ReplayError(f"no log in {folder}; expected {EXPECTED}")


def _steps_in_name(state: Path) -> int:
    """How far a state is: the one beside the checkpoints is of the end."""
    number = re.fullmatch(r"checkpoint-(\d+)", state.parent.name)
    return int(number[1]) if number else 1 << 62


def _one_run(kind: Format, folder: Path, found: Sequence[Path], troubles: Troubles) -> Source:
    """The files of one run: of event files those in one folder, of others one file."""
    runs: dict[Path, list[Path]] = {}
    for path in sorted(found):
        runs.setdefault(path.parent if kind is EVENTS else path.resolve(), []).append(path)
    chosen = max(runs.values(), key=lambda files: sum(file.stat().st_size for file in files))
    for files in runs.values():
        if files is not chosen:
            where = str(files[0].parent if kind is EVENTS else files[0])
            troubles.note("other runs in that folder, which are not read", where)
    return Source(kind, chosen)


def _format_of(path: Path) -> Format:
    """The format of a file, by what is in it and not by its name."""
    stream = Stream(path)
    try:
        start = stream.file.read(_START)
    except DAMAGED_GZIP as error:
        raise ReplayError(f"{path} is a damaged archive: {error}") from None
    finally:
        stream.close()
    if not start.strip():
        raise ReplayError(f"{path} is empty; expected {EXPECTED}")
    if start.startswith(wandb_runs.MAGIC):
        return WANDB
    if tfevents.is_event_file(start):
        return EVENTS
    known = _text_format(start)
    if known is None:
        raise ReplayError(f"{path} is no log of a known format; expected {EXPECTED}")
    return known


def _text_format(start: bytes) -> Format | None:
    text = start.decode("utf-8", "replace").lstrip("\ufeff")
    first = next(filter(str.strip, text.splitlines()), "")
    if text.lstrip().startswith("{"):
        try:
            record = json.loads(first)
        except ValueError:
            return TRAINER_STATE if '"log_history"' in text else _if_lines(text)
        return TRAINER_STATE if "log_history" in record else JSON_LINES
    readable = "\0" not in text and "\ufffd" not in first
    if readable and any(mark in first for mark in text_logs.DELIMITERS):
        return CSV
    return None


def _if_lines(text: str) -> Format | None:
    """JSON lines whose first one is damaged."""
    return JSON_LINES if any(map(_is_object, text.splitlines()[1:])) else None


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
