# SPDX-License-Identifier: Apache-2.0
"""What a person at a shell can use of a demo afterwards: its command, and its reports."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shlex import quote
from tempfile import mkdtemp
from typing import Final

NAME: Final = "training-exporter"


def program() -> str:
    """What to type for the program that runs: its name if the shell finds it by that, else its
    path, from the working directory if it is below."""
    own = Path(sys.argv[0])
    found = shutil.which(NAME)
    if own.stem != NAME or (found is not None and Path(found).samefile(own)):
        return NAME
    path, here = own.absolute(), Path.cwd()
    # A name without a slash would be looked up on PATH.
    below = here in path.parent.parents
    return quote(str(path.relative_to(here) if below else path))


@contextmanager
def folder_for_reports() -> Iterator[Path]:
    """A folder that outlives the block if there is a report in it."""
    folder = mkdtemp(prefix="training-exporter-demo-")
    try:
        yield Path(folder)
    finally:
        with suppress(OSError):  # it is not empty, then
            os.rmdir(folder)
