# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from tests.unit.replay.logs import rows, write_csv
from training_exporter.replay.formats import CSV, JSON_LINES, NotYetError, format_of
from training_exporter.replay.trouble import ReplayError

_OBJECTS = '{"step": 1, "loss": 2}\n{"step": 2, "loss": 3}\n'


def log_of(folder: Path, content: str | bytes) -> Path:
    path = folder / "log"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    "start", ["Starting training\n", "Starting training, lr=1e-3\n", "# foo, v1\n\n", "one\ntwo\n"]
)
def test_json_lines_below_some_text(tmp_path: Path, start: str) -> None:
    """Are known by most of the first lines."""
    assert format_of(log_of(tmp_path, start + _OBJECTS)) is JSON_LINES


@pytest.mark.parametrize(
    "content",
    [
        b"# made by foo\nstep,loss\n1,2\n",
        b"# made by foo, v1\nstep,loss\n1,2\n",
        b"# made by foo, v1\n",
        b"# step,loss\n1,2\n",
        b"step,loss,caf\xe9\n1,2,3\n",
        b"loss\n2.5\n2.4\n",
        b'"train/loss"\nnan\n',
        b"step,note\n1,{}\n2,{}\n",
        b'"step", "loss"\n1,2\n',
    ],
)
def test_tables(tmp_path: Path, content: bytes) -> None:
    """Whatever is above the names, and of one column, too, where numbers are below its name."""
    assert format_of(log_of(tmp_path, content)) is CSV


@pytest.mark.parametrize(
    "content",
    [
        b"all went well\n3\n",
        b"loss\nwas low\n",
        b"2.5\n2.4\n",
        b"\xfd\xfe\xff,\xfc\n1,2\n",
        b"\x01\x02,\x03\n1,2\n",
    ],
)
def test_no_tables(tmp_path: Path, content: bytes) -> None:
    """Text, numbers without a name, and bytes that are no text."""
    with pytest.raises(ReplayError, match="no log of a known format") as raised:
        format_of(log_of(tmp_path, content))

    assert not isinstance(raised.value, NotYetError)


@pytest.mark.parametrize("content", [b"step,loss\r1,2\r2,3\r", b'{"step": 1}\r{"step": 2}'])
def test_lines_that_end_with_cr(tmp_path: Path, content: bytes) -> None:
    """Are told, with what helps; one that has half its end so far is none of them."""
    with pytest.raises(ReplayError, match="lines that end with CR; expected LF"):
        format_of(log_of(tmp_path, content))

    assert format_of(log_of(tmp_path, b"step,loss\r")) is CSV


def test_archives_are_known_by_what_is_in_them(tmp_path: Path) -> None:
    """One of another name is unpacked, and what is only called like one is not."""
    plain = write_csv(tmp_path / "plain.csv.gz", rows())
    packed = tmp_path / "packed.csv"
    packed.write_bytes(gzip.compress(plain.read_bytes()))

    assert format_of(plain) is CSV
    assert format_of(packed) is CSV


def test_a_short_archive_that_is_cut_off(tmp_path: Path) -> None:
    """Has a format, unless nothing at all can be unpacked."""
    packed = gzip.compress(write_csv(tmp_path / "whole", rows()).read_bytes())

    assert format_of(log_of(tmp_path, packed[: len(packed) // 2])) is CSV
    with pytest.raises(ReplayError, match="is a damaged archive"):
        format_of(log_of(tmp_path, packed[:12]))
