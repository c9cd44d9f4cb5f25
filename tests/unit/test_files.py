# SPDX-License-Identifier: Apache-2.0
"""A file is there whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from training_exporter.files import write_whole


def test_a_file_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    """And of its draft nothing stays."""
    path = tmp_path / "file"
    for content in (b"one", b"two"):
        write_whole(path, content, draft=tmp_path / "draft")

    assert path.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [path]


def test_where_it_cannot_be_written_nothing_changes(tmp_path: Path) -> None:
    """Here because a folder has that name; the draft is removed."""
    path = tmp_path / "folder"
    (path / "full").mkdir(parents=True)
    with pytest.raises(OSError, match="folder"):
        write_whole(path, b"one", draft=tmp_path / "draft")

    assert list(tmp_path.iterdir()) == [path]


def test_a_draft_that_cannot_be_made_is_the_error(tmp_path: Path) -> None:
    """Not that it could not be removed."""
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "file", b"one", draft=tmp_path / "no" / "draft")
