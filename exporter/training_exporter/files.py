# SPDX-License-Identifier: Apache-2.0
"""Files that are there whole or not at all."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def write_whole(path: Path, content: bytes, *, draft: Path) -> None:
    """Write a file, instead of one that is there, under its name only once it is whole.

    It is not forced to the disk.

    Args:
        path: the file.
        content: what goes in.
        draft: where it is written before, on the same file system; by a name that nobody else uses
            nor looks for. It does not stay, unless the process is killed meanwhile.

    Raises:
        OSError: no permission, disk full, no such folder.
    """
    try:
        draft.write_bytes(content)
        draft.replace(path)
    except BaseException:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise
