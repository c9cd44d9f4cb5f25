# SPDX-License-Identifier: Apache-2.0
"""What a person at a shell can use of a demo afterwards: its reports."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp


@contextmanager
def folder_for_reports() -> Iterator[Path]:
    """A folder that outlives the block if there is a report in it."""
    folder = mkdtemp(prefix="training-exporter-demo-")
    try:
        yield Path(folder)
    finally:
        with suppress(OSError):  # it is not empty, then
            os.rmdir(folder)
