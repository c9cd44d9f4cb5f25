# SPDX-License-Identifier: Apache-2.0
"""The summary of a run as a file beside what the run has made."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from training_exporter.files import write_whole
from training_exporter.summary.making import RunSummary, summary_json

FILE_NAME: Final = "training_exporter_summary.json"


def write_summary(folder: Path, summary: RunSummary) -> Path:
    """Write a summary into a folder, whole or not at all, instead of one that is there.

    Returns:
        the file.

    Raises:
        OSError: it cannot be written there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE_NAME
    draft = folder / f"_{FILE_NAME}.{os.getpid()}"  # a name that uploads of the folder leave out
    write_whole(path, summary_json(summary).encode(), draft=draft)
    return path
