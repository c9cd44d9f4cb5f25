# SPDX-License-Identifier: Apache-2.0
"""What a past run is called."""

from __future__ import annotations

import re
from pathlib import Path

_ENDINGS = (".gz", ".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".wandb", ".log", ".txt")
_FILES_OF_ALL = re.compile(r"trainer_state|trainer_log|metrics|.*tfevents.*")
_FOLDERS_OF_ALL = re.compile(r"checkpoint-\d+|version_\d+|lightning_logs")
"""Names that all runs of a trainer share say nothing of one."""


def run_name(path: Path, *, is_folder: bool) -> str:
    """The name of a run by where its log lies: that of the file without its ending, or of the
    folder; or of the nearest folder above, where that is called the same in all runs.

    Args:
        path: file or folder, from the root on.
        is_folder: whether it is a folder, of which all belongs to the name.
    """
    own = path.name if is_folder else _without_endings(path.name)
    if (_FOLDERS_OF_ALL if is_folder else _FILES_OF_ALL).fullmatch(own):
        above = (folder.name for folder in path.parents)
        return next((name for name in above if name and not _FOLDERS_OF_ALL.fullmatch(name)), own)
    return own or str(path)


def _without_endings(name: str) -> str:
    file = Path(name)
    while file.suffix.lower() in _ENDINGS:
        file = file.with_suffix("")
    return file.name
