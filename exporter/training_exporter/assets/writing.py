# SPDX-License-Identifier: Apache-2.0
"""Files into a folder, without losing what somebody has changed there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


class AssetsError(Exception):
    """The files cannot be written; the message is for the user."""


def write_files(folder: Path, files: Mapping[str, str], *, overwrite: bool = False) -> list[Path]:
    """Write all files, or none where one is there already and says something else.

    Args:
        folder: where to; is made if it is not there.
        files: path below the folder -> text.
        overwrite: replace what is there.

    Returns:
        what was written or is as it should be.

    Raises:
        AssetsError: a file would be overwritten, or the folder cannot be written to.
    """
    texts = {folder / name: text for name, text in files.items()}
    try:
        changed = [path for path, text in texts.items() if path.exists() and _differs(path, text)]
        if changed and not overwrite:
            names = ", ".join(str(path) for path in changed[:5])
            more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
            raise AssetsError(
                f"{names}{more} would be overwritten. Nothing was written; --force overwrites."
            )
        for path, text in texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise AssetsError(f"cannot write to {folder}: {error}") from error
    return list(texts)


def _differs(path: Path, text: str) -> bool:
    return path.read_bytes() != text.encode()
