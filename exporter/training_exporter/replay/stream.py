# SPDX-License-Identifier: Apache-2.0
"""Files as streams of bytes, of which it is known how far they have been read."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Callable, Iterator
from io import BufferedReader, RawIOBase
from pathlib import Path

from training_exporter.replay.trouble import Troubles

MAX_LINE = 1 << 24
"""Longer lines come in pieces, so that no file is read into memory as a whole."""

_GZIP = b"\x1f\x8b"
"""How every archive begins, whatever it is called."""
_DAMAGES = (EOFError, gzip.BadGzipFile, zlib.error)
DAMAGED_ARCHIVE = "archive(|s) that (is|are) damaged or cut off"
"""How it is told that unpacking raised one of them."""
_TAIL = 256
"""Bytes before the end by which a file that was written anew is known."""


def is_archive(path: Path) -> bool:
    """Whether a file is packed; raises OSError when it cannot be read."""
    with path.open("rb") as file:
        return file.read(len(_GZIP)) == _GZIP


class _Unpacked(RawIOBase):
    """What is in an archive. Where that is damaged or cut off it ends.

    Attributes:
        damage: what is wrong there, None until that was reached.
    """

    def __init__(self, packed: BufferedReader) -> None:
        super().__init__()
        self.damage: Exception | None = None
        self._archive = gzip.GzipFile(fileobj=packed)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # what readers give it
        if self.damage is not None:
            return 0
        try:
            found = self._archive.read1(len(buffer))  # no more, as what a damage cuts off is lost
        except _DAMAGES as error:
            self.damage = error
            return 0
        buffer[: len(found)] = found
        return len(found)


class Stream:
    """A file to read from, unpacked where it is an archive.

    Args:
        path: the file.
        wait: waits at its end for more to be written; False when no more is to be waited for.

    Attributes:
        file: the bytes of the log, up to where an archive is damaged or cut off.
    """

    def __init__(self, path: Path, wait: Callable[[], bool] = lambda: False) -> None:
        self._path = path
        self._wait = wait
        self._raw = self.file = path.open("rb")
        self._unpacked: _Unpacked | None = None
        self._damage_is_told = False
        if self._raw.peek(len(_GZIP)).startswith(_GZIP):
            self._unpacked = _Unpacked(self._raw)
            self.file = BufferedReader(self._unpacked)
        self._tail_start, self._tail = 0, b""

    @property
    def damage(self) -> Exception | None:
        """Why an archive ended, where that is not its end."""
        return self._unpacked.damage if self._unpacked is not None else None

    @property
    def position(self) -> int:
        """Bytes of the file that were read, packed as they are."""
        return self._raw.tell()

    def close(self) -> None:
        self.file.close()
        self._raw.close()

    def replaced(self) -> bool:
        """Whether, since the last call, the path became another file's, or the file shorter, or
        what had been read of it different."""
        mine, position = self._raw.fileno(), self.position
        try:
            if not os.path.samestat(os.stat(self._path), os.fstat(mine)):
                return True
        except FileNotFoundError:
            return False  # what comes in its place may come yet
        shorter = os.fstat(mine).st_size < position
        if shorter or os.pread(mine, len(self._tail), self._tail_start) != self._tail:
            self._raw.seek(0, os.SEEK_END)  # what is there is not the rest of what was read
            return True
        self._tail_start = max(0, position - _TAIL)
        self._tail = os.pread(mine, position - self._tail_start, self._tail_start)
        return False

    def read(self, size: int, troubles: Troubles) -> bytes:
        """The next bytes, fewer at the end or where the archive is damaged."""
        found = self.file.read(size)
        while len(found) < size and self._wait():
            found += self.file.read(size - len(found))
        if len(found) < size:
            self._tell_damage(troubles)
        return found

    def lines(self, troubles: Troubles) -> Iterator[str]:
        """The lines with their ends, whatever bytes they have that are no UTF-8."""
        readline = self.file.readline
        while True:
            line = readline(MAX_LINE)
            while not line.endswith(b"\n") and len(line) < MAX_LINE and self._wait():
                line += readline(MAX_LINE)
            if not line:
                self._tell_damage(troubles)
                return
            yield line.decode("utf-8", "replace")

    def _tell_damage(self, troubles: Troubles) -> None:
        """Note at the end, once, that the archive does not go on though it should."""
        if self.damage is not None and not self._damage_is_told:
            self._damage_is_told = True
            troubles.note(f"{DAMAGED_ARCHIVE} ({self.damage})")
