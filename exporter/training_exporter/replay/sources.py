# SPDX-License-Identifier: Apache-2.0
"""What lies at a path: the files of one run, and the records in them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from errno import ENOENT
from itertools import chain, takewhile
from pathlib import Path

from training_exporter.replay.following import (
    Following,
    follow_growing,
    follow_rewritten,
    read_whole,
)
from training_exporter.replay.formats import (
    CSV,
    EVENTS,
    EXPECTED,
    JSON_LINES,
    TRAINER_STATE,
    WANDB,
    Format,
    NotYetError,
    format_of,
)
from training_exporter.replay.stream import Stream, is_archive
from training_exporter.replay.text_logs import Record
from training_exporter.replay.trouble import ReplayError, Troubles

_BY_THE_ROW = (EVENTS, WANDB, JSON_LINES, CSV)
"""What is looked for in a folder; a state is written at checkpoints alone."""
_PACKED = ".gz"
"""How the names of archives end in a folder."""
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_OTHER_NAMES = (".jsonl", ".csv")
"""How logs that have none of the known names are called; what else lies in a folder is none."""
_MANY = 5
"""So many names are told, and of more only how many there are."""


class Source:
    """A log: its files and their format.

    Args:
        kind: the format.
        paths: the files.
        folder: in which they were found; None when the file itself was asked for.
        others: files of that format that lay there too.

    Attributes:
        total_bytes: size of the files.
    """

    def __init__(
        self,
        kind: Format,
        paths: Sequence[Path],
        folder: Path | None = None,
        others: Iterable[Path] = (),
    ) -> None:
        self.format = kind
        self.paths = tuple(paths)
        self.total_bytes = sum(path.stat().st_size for path in paths)
        self._folder = folder
        self._last = self.paths[-1]
        self._known = {path.resolve() for path in (*paths, *others)}
        self._done = 0
        self._stream: Stream | None = None
        if folder is None and kind is EVENTS:
            self._known.update(path.resolve() for path in self._last.parent.glob(kind.pattern))

    @property
    def position(self) -> int:
        """Bytes that were read so far."""
        return self._done + (self._stream.position if self._stream else 0)

    @property
    def is_archive(self) -> bool:
        """Whether what is written last is packed, so that it does not grow."""
        return is_archive(self._last)

    def records(self, troubles: Troubles) -> Iterator[Record]:
        """All that was logged so far, in the order of the files."""
        return self._records_of(self.paths, troubles)

    def follow(self, troubles: Troubles, following: Following) -> Iterator[Record]:
        """All that was logged, and then what is logged from now on."""
        read = self.format.read
        if self.format is TRAINER_STATE:
            yield from follow_rewritten(self._newest_state, read, troubles, following)
            return
        yield from self._records_of(self.paths[:-1], troubles)
        yield from follow_growing(self._last, self._later, read, troubles, following)

    def _records_of(self, paths: Iterable[Path], troubles: Troubles) -> Iterator[Record]:
        for path in paths:
            self._stream = stream = Stream(path)
            try:
                yield from self.format.read(stream, troubles)
            finally:
                self._stream = None
                stream.close()
            self._done += path.stat().st_size

    def _newest_state(self) -> Path:
        return self._last if self._folder is None else _newest(_states_in(self._folder))

    def _later(self) -> Path | None:
        """A file that has come up since: in the same folder, or, as loggers make a new folder for
        each process, in one beside it that lies in the folder that was asked for."""
        if self._folder is None and self.format is not EVENTS:
            return None
        here, pattern = self._last.parent, self.format.pattern
        try:
            found = [*here.glob(pattern)]
            if self._folder is not None and self._folder in here.parents:
                found += here.parent.glob(f"*/{pattern}")
            new = [path for path in found if path.resolve() not in self._known]
            first = min(_with_content(new), key=_written, default=None)
        except FileNotFoundError:
            return None  # a file or folder was just deleted
        if first is not None:
            self._last = first
            self._known.add(first.resolve())
        return first


def find_source(path: Path, troubles: Troubles, *, going_on: bool = False) -> Source:
    """What lies at a path.

    Args:
        path: file or folder.
        troubles: takes what is wrong.
        going_on: the run is to be followed. In a folder, what is written row by row goes before
            states, and the run that was written last before the largest.

    Raises:
        NotYetError: nothing is there that can be read, saying what was expected.
        ReplayError: what is there cannot be read.
    """
    if not path.exists():
        raise NotYetError(f"there is no {path}")
    if not path.is_dir() and not path.is_file():
        # Nothing can be read twice there, and reading may wait for ever.
        raise ReplayError(
            f"{path} is neither a file nor a folder; save what comes from it as a file"
        )
    try:
        if not path.is_dir():
            return Source(format_of(path), [path])
        return _going_on_in(path, troubles) if going_on else _in_folder(path, troubles)
    except FileNotFoundError as error:
        raise NotYetError(f"{error.filename} is gone") from None
    except OSError as error:
        raise ReplayError(f"cannot read {path}: {error.strerror or error}") from None


def _in_folder(folder: Path, troubles: Troubles) -> Source:
    states = _states_in(folder)
    state = _last_readable(states, troubles)
    if state is not None:
        return Source(TRAINER_STATE, [state], folder)
    for kind in _BY_THE_ROW:
        runs = _runs_in(folder, kind, kind.pattern, kind.pattern + _PACKED)
        if runs:
            return _one_run(kind, folder, runs, max(runs, key=_size), troubles)
    output = _output_below(folder, lambda path: path.stat().st_size, troubles)
    if output is not None:
        return _in_folder(output, troubles)
    only = _only_log(folder, (*_OTHER_NAMES, *(name + _PACKED for name in _OTHER_NAMES)))
    if only is not None:
        return only
    if states:  # who reads it will say what is wrong with it
        return Source(TRAINER_STATE, [max(states, key=_steps_in_name)], folder)
    raise NotYetError(f"no log in {folder}; expected {EXPECTED}")


def _going_on_in(folder: Path, troubles: Troubles) -> Source:
    for kind in _BY_THE_ROW:
        runs = _outermost(_runs_in(folder, kind, kind.pattern))
        if runs:
            newest = max(runs, key=lambda files: max(map(_written, files)))
            return _one_run(kind, folder, runs, newest, troubles)
    states = _states_in(folder)
    if states:
        return Source(TRAINER_STATE, [_newest(states)], folder)
    output = _output_below(folder, _written, troubles)
    if output is not None:
        return _going_on_in(output, troubles)
    only = _only_log(folder, _OTHER_NAMES)
    if only is not None:
        return only
    raise NotYetError(f"no log in {folder}; expected {EXPECTED}")


def _states_in(folder: Path) -> list[Path]:
    name = TRAINER_STATE.pattern
    return [*folder.glob(name), *folder.glob(f"checkpoint-*/{name}")]


def _output_below(folder: Path, rank: Callable[[Path], int], troubles: Troubles) -> Path | None:
    """The Trainer's output folder that lies deeper; of several that of the highest state."""
    highest: dict[Path, int] = {}
    for state in _with_content(folder.rglob(TRAINER_STATE.pattern)):
        output = state.parent
        if _CHECKPOINT.fullmatch(output.name):
            output = output.parent
        if folder in output.parents:
            highest[output] = max(rank(state), highest.get(output, 0))
    if not highest:
        return None
    chosen = max(highest, key=lambda output: highest[output])
    for output in highest:
        if output != chosen:
            _note_other(str(output), troubles)
    return chosen


def _only_log(folder: Path, endings: tuple[str, ...]) -> Source | None:
    """The log of another name that lies there, by how it ends.

    Raises:
        NotYetError: there are several.
    """
    found = [path for path in _with_content(folder.iterdir()) if path.name.endswith(endings)]
    logs = [Source(kind, [path]) for path in found if (kind := _format_or_none(path)) is not None]
    if len(logs) > 1:
        names = [str(path) for log in logs for path in log.paths]
        more = f" and {len(names) - _MANY} more" if len(names) > _MANY else ""
        raise NotYetError(
            f"several logs in {folder}; name one of them: {', '.join(names[:_MANY])}{more}"
        )
    return logs[0] if logs else None


def _format_or_none(path: Path) -> Format | None:
    try:
        return format_of(path)
    except (ReplayError, OSError):
        return None


def _last_readable(states: Iterable[Path], troubles: Troubles) -> Path | None:
    """The last state that is whole, else the last that has rows, None where none has."""
    latest_first = sorted(states, key=_steps_in_name, reverse=True)
    good = (state for is_good in (_is_whole, _has_rows) for state in filter(is_good, latest_first))
    chosen = next(good, None)
    for damaged in takewhile(lambda state: state != chosen, latest_first):
        troubles.note(
            "state(|s) that (is|are) empty or damaged and (was|were) not read", str(damaged)
        )
    return chosen


def _is_whole(state: Path) -> bool:
    """Whether it has rows, and can be read up to their end."""
    found = Troubles()
    rows = sum(map(bool, read_whole(state, TRAINER_STATE.read, found)))
    return rows > 0 and not found.lines()


def _has_rows(state: Path) -> bool:
    return any(read_whole(state, TRAINER_STATE.read, Troubles()))


def _steps_in_name(state: Path) -> int:
    """How far a state is: the one beside the checkpoints is of the end."""
    number = _CHECKPOINT.fullmatch(state.parent.name)
    return int(number[1]) if number else 1 << 62


def _newest(states: Iterable[Path]) -> Path:
    """The state that was written last.

    Raises:
        FileNotFoundError: there is none, or it was just deleted.
    """
    newest = max(states, key=lambda path: (_written(path), _steps_in_name(path)), default=None)
    if newest is None:
        raise FileNotFoundError(ENOENT, "no state", TRAINER_STATE.pattern)
    return newest


def _written(path: Path) -> int:
    return path.stat().st_mtime_ns


def _size(files: Iterable[Path]) -> int:
    return sum(file.stat().st_size for file in files)


def _with_content(paths: Iterable[Path]) -> list[Path]:
    return sorted(path for path in paths if path.is_file() and path.stat().st_size)


def _runs_in(folder: Path, kind: Format, *patterns: str) -> list[list[Path]]:
    """The files of each run: of event files those in one folder, of others one file."""
    runs: dict[Path, list[Path]] = {}
    for path in _with_content({path for pattern in patterns for path in folder.rglob(pattern)}):
        runs.setdefault(path.parent if kind is EVENTS else path.resolve(), []).append(path)
    return list(runs.values())


def _outermost(runs: Sequence[list[Path]]) -> list[list[Path]]:
    """Without those that lie deeper than another: `add_scalars` makes a folder for each curve."""
    folders = {files[0].parent for files in runs}
    return [files for files in runs if folders.isdisjoint(files[0].parent.parents)]


def _one_run(
    kind: Format,
    folder: Path,
    runs: Sequence[Sequence[Path]],
    chosen: Sequence[Path],
    troubles: Troubles,
) -> Source:
    others = [files for files in runs if files is not chosen]
    for files in others:
        _note_other(str(files[0].parent if kind is EVENTS else files[0]), troubles)
    paths = [chosen[0]] if kind is not EVENTS else chosen
    return Source(kind, paths, folder, chain.from_iterable(others))


def _note_other(where: str, troubles: Troubles) -> None:
    troubles.note("other run(|s) in that folder, which (is|are) not read", where)
