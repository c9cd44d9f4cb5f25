# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path


def installed(folder: Path) -> Path:
    """A program with the name of ours in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "training-exporter"
    program.touch(mode=0o755)
    return program
