# SPDX-License-Identifier: Apache-2.0
"""The files that a replay writes: refused are those that it could not or should not write."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path

from training_exporter.replay.trouble import ReplayError


def require_writable(option: str, file: Path) -> None:
    """Refuse a file that could not be written in the end, before a log is read.

    Raises:
        ReplayError: naming what is wrong with it.
    """
    target = Path(os.path.realpath(file))
    if not target.parent.is_dir():
        raise ReplayError(f"{option} takes a file in a folder that is there, not {file}")
    if target.is_dir():
        raise ReplayError(f"{option} takes a file, and {file} is a folder")
    if os.path.lexists(target) and not target.is_file():  # such as a device, which would be gone
        raise ReplayError(f"{option} takes a file, and {file} is something else")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise ReplayError(f"{option} takes a file in a folder that can be written to, not {file}")


def require_apart(outputs: Mapping[str, Path], read: Iterable[Path] = ()) -> None:
    """Refuse a file that would take the place of another one of this replay.

    Args:
        outputs: files by the options that ask for them.
        read: files that are read.

    Raises:
        ReplayError: naming it.
    """
    for (option, file), (other_option, other) in combinations(outputs.items(), 2):
        if _is_same(file, other):
            raise ReplayError(f"{option} and {other_option} take two files, not both {file}")
    for log in read:
        for option, file in outputs.items():
            if _is_same(file, log):
                raise ReplayError(f"{option} would write over the log: {file}")


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:  # one of them is not there
        return os.path.realpath(one) == os.path.realpath(other)


@contextmanager
def writing(file: Path) -> Iterator[None]:
    """Says of a file that cannot be written what the user called it, and not what its draft is.

    Raises:
        ReplayError: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise ReplayError(f"cannot write {file}: {error.strerror or error}") from None
