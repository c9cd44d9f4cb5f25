# SPDX-License-Identifier: Apache-2.0
"""Files as streams of bytes, of which it is known how far they have been read."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, cast

from training_exporter.replay.trouble import Troubles

MAX_LINE = 1 << 24
"""Longer lines come in pieces, so that no file is read into memory as a whole."""

DAMAGED_GZIP = (EOFError, gzip.BadGzipFile, zlib.error)
DAMAGED_ARCHIVE = "archive that is damaged or cut off"
"""How it is told that unpacking raised one of them."""
_TAIL = 256
"""Bytes before the end by which a file that was written anew is known."""


class Stream:
    """A file to read from, unpacked where its name ends in `.gz`.

    Args:
        path: the file.
        wait: waits at its end for more to be written; False when no more is to be waited for.

    Attributes:
        file: the bytes of the log.
    """

    def __init__(self, path: Path, wait: Callable[[], bool] = lambda: False) -> None:
        self._path = path
        self._wait = wait
        self._raw = path.open("rb")
        packed = path.suffix == ".gz"
        # Both read only; gzip's type says that it may be written to.
        self.file = cast("IO[bytes]", gzip.GzipFile(fileobj=self._raw) if packed else self._raw)
        self._tail_start, self._tail = 0, b""

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
        try:
            found = self.file.read(size)
            while len(found) < size and self._wait():
                found += self.file.read(size - len(found))
        except DAMAGED_GZIP as error:
            troubles.note(DAMAGED_ARCHIVE, str(error))
            return b""
        return found

    def lines(self, troubles: Troubles) -> Iterator[str]:
        """The lines with their ends, whatever bytes they have that are no UTF-8."""
        readline = self.file.readline
        while True:
            try:
                line = readline(MAX_LINE)
                while not line.endswith(b"\n") and len(line) < MAX_LINE and self._wait():
                    line += readline(MAX_LINE)
            except DAMAGED_GZIP as error:
                troubles.note(DAMAGED_ARCHIVE, str(error))
                return
            if not line:
                return
            yield line.decode("utf-8", "replace")
