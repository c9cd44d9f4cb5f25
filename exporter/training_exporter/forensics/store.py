# SPDX-License-Identifier: Apache-2.0
"""A directory of reports that never fills the disk."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from stat import S_ISREG
from time import time
from typing import Final, NamedTuple

from training_exporter.forensics.jsonform import ReportError, from_json, to_json
from training_exporter.forensics.report import Report
from training_exporter.values import safe_file_name

DIRECTORY: Final = "_training-exporter-reports"
"""The Trainer's upload to a hub leaves out what begins so."""
MOST_FILES: Final = 4096
MOST_BYTES: Final = 256 << 20
"""Some tens of kilobytes for each of some thousand ranks, which may share a folder."""
READABLE_BYTES: Final = 16 << 20
"""A report is some tens of kilobytes; what is larger is something else and not read."""

_ABANDONED_SECONDS: Final = 3600.0
_OWN: Final = re.compile(r"non-finite-(?P<run>.*)-r(?P<rank>\d+)-s\d+(-\d+)?\.json")
_OWN_UNFINISHED: Final = re.compile(r"\.non-finite-.+\.json\.\d+\.tmp")
_SAME_STEP: Final = 100


class _File(NamedTuple):
    written: float
    path: Path
    size: int
    run: str = ""
    rank: str = ""


class ReportStore:
    """Writes reports into a directory, one file each, and removes the oldest of its own.

    It is made with the first report. Several processes may share it: names carry run and rank, and
    the bounds are those of the directory. The first report of any other rank of the same run stays:
    all ranks break in the same step, and one of them was first. Files of other names, links and
    folders in it are neither counted nor removed.

    Args:
        directory: where the reports go.
        most_files: how many reports to keep, those of other runs and ranks included.
        most_bytes: how many bytes they may have together.

    Raises:
        ValueError: a bound below 1.
    """

    def __init__(
        self, directory: Path, *, most_files: int = MOST_FILES, most_bytes: int = MOST_BYTES
    ) -> None:
        if most_files < 1 or most_bytes < 1:
            raise ValueError(
                f"at least one file and one byte must be allowed, got {most_files} and {most_bytes}"
            )
        self.directory = directory
        self._most_files = most_files
        self._most_bytes = most_bytes

    def save(self, report: Report) -> Path:
        """Write a report, under its name only once it is whole; the file's path.

        Raises:
            OSError: no permission, disk full, no directory. Nothing half written stays behind.
            ValueError: the report is larger than all reports may be, or there is only room for the
                first ones of other ranks.
        """
        content = to_json(report).encode()
        if len(content) > self._most_bytes:
            raise ValueError(f"a report of {len(content)} bytes; {self._most_bytes} are allowed")
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self._free_path(report)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            _write(unfinished, content)
            self._make_room(path, len(content))
            os.replace(unfinished, path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        return path

    def _free_path(self, report: Report) -> Path:
        """The report's path. A second report on a step, after a restart, does not replace the
        first."""
        stem = file_stem(report.about.run, report.about.rank, report.step)
        path = self.directory / f"{stem}.json"
        for number in range(2, _SAME_STEP):
            if not path.exists():
                break
            path = self.directory / f"{stem}-{number}.json"
        return path

    def _make_room(self, path: Path, size: int) -> None:
        """Remove the oldest reports until one of `size` bytes fits in at `path`."""
        self._remove_abandoned()
        files = sorted(self._files(_OWN))
        total = sum(file.size for file in files) + size
        count = len(files) + 1
        going = []
        for file in _without_firsts_beside(path, files):
            if count <= self._most_files and total <= self._most_bytes:
                break
            going.append(file)
            count, total = count - 1, total - file.size
        if count > self._most_files or total > self._most_bytes:
            raise ValueError(f"{self.directory} is full of first reports of other ranks")
        for file in going:
            file.path.unlink(missing_ok=True)  # another process may have been faster

    def _remove_abandoned(self) -> None:
        """Remove what processes left behind that were killed while they wrote."""
        before = time() - _ABANDONED_SECONDS
        for file in self._files(_OWN_UNFINISHED):
            if file.written < before:
                file.path.unlink(missing_ok=True)

    def _files(self, names: re.Pattern[str]) -> Iterator[_File]:
        with os.scandir(self.directory) as entries:
            named = [(entry, names.fullmatch(entry.name)) for entry in entries]
        for entry, name in named:
            if name is None:
                continue
            with suppress(FileNotFoundError):
                found = entry.stat(follow_symlinks=False)
                if S_ISREG(found.st_mode):
                    path = Path(entry.path)
                    yield _File(found.st_mtime, path, found.st_size, **name.groupdict())


def _without_firsts_beside(path: Path, files: list[_File]) -> Iterator[_File]:
    """Files, oldest first, without the first one of each other rank of the same run."""
    name = _OWN.fullmatch(path.name)
    run, rank = name.group("run", "rank") if name is not None else ("", "")
    met = {rank}
    for file in files:
        if file.run == run and file.rank not in met:
            met.add(file.rank)
        else:
            yield file


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())  # a name that a crash leaves without content would be no report


def default_directory(output_dir: str | None = None) -> Path:
    """Where reports go unless the user says: beside what the trainer writes, else in the working
    directory."""
    return Path(output_dir or ".") / DIRECTORY


def file_stem(run: str, rank: int, step: int) -> str:
    """A report's file name without its ending, safe on every file system."""
    return f"non-finite-{safe_file_name(run)}-r{rank}-s{step:08d}"


def read_report(path: Path) -> Report:
    """The report in a file.

    Raises:
        ReportError: it cannot be read or is no report; one line that names the file.
    """
    try:
        if path.stat().st_size > READABLE_BYTES:
            raise ReportError("it is too large for a report")
        return from_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ReportError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ReportError(f"{path}: this is not JSON: it is no UTF-8 text") from None
    except ReportError as error:
        raise ReportError(f"{path}: {error}") from None
