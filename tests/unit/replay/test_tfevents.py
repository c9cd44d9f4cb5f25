# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.replay.logs import read, scalar_event, tf_record
from training_exporter.replay.tfevents import is_event_file, masked_crc, scalars
from training_exporter.replay.wire import WireError, fields_of, signed


def test_the_checksum() -> None:
    """The known answer of CRC-32C for 123456789, masked."""
    crc = 0xE3069283
    assert masked_crc(b"123456789") == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def events(path: Path, *records: bytes) -> Path:
    path.write_bytes(b"".join(records))
    return path


def test_scalars_of_a_step_come_together(tmp_path: Path) -> None:
    """As long as no tag comes twice."""
    path = events(
        tmp_path / "events",
        *(
            tf_record(scalar_event(step, tag, value))
            for step, tag, value in [(300, "loss", 2.0), (300, "lr", 0.5), (301, "loss", 1.0)]
        ),
        tf_record(scalar_event(301, "loss", 4.0)),
    )

    records, troubles = read(scalars, path)

    assert records == [
        {"_step": 300, "_timestamp": 1e9 + 300, "loss": 2.0, "lr": 0.5},
        {"_step": 301, "_timestamp": 1e9 + 301, "loss": 1.0},
        {"_step": 301, "_timestamp": 1e9 + 301, "loss": 4.0},
    ]
    assert troubles == []


def test_a_damaged_event_is_left_out(tmp_path: Path) -> None:
    """One flipped bit in its value, and the events behind it are still read."""
    damaged = bytearray(tf_record(scalar_event(2, "loss", 2.0)))
    damaged[-6] ^= 1
    good = [tf_record(scalar_event(step, "loss", 1.0)) for step in (1, 3)]
    path = events(tmp_path / "events", good[0], bytes(damaged), good[1])

    records, troubles = read(scalars, path)

    assert [record["_step"] for record in records] == [1, 3]
    assert troubles == ["1 events that are damaged and were left out"]


def test_a_damaged_length_ends_the_file(tmp_path: Path) -> None:
    """Nobody knows where the next event begins."""
    damaged = bytearray(tf_record(scalar_event(2, "loss", 2.0)))
    damaged[0] ^= 1
    path = events(tmp_path / "events", tf_record(scalar_event(1, "loss", 1.0)), bytes(damaged))

    records, troubles = read(scalars, path)

    assert len(records) == 1
    assert troubles == ["1 event file that is damaged, and was read up to there"]


@pytest.mark.parametrize("kept", [5, 12, 20, -1])
def test_an_event_that_is_being_written(tmp_path: Path, kept: int) -> None:
    """Is left out, wherever the file ends."""
    last = tf_record(scalar_event(2, "loss", 2.0))
    path = events(tmp_path / "events", tf_record(scalar_event(1, "loss", 1.0)), last[:kept])

    records, troubles = read(scalars, path)

    assert [record["_step"] for record in records] == [1]
    assert troubles == ["1 last event that is cut off and was left out"]


def test_what_is_an_event_file() -> None:
    """By its first bytes, whatever it is called."""
    assert is_event_file(tf_record(b""))
    assert not is_event_file(b"step,loss\n1,2\n3,4")
    assert not is_event_file(b"short")


@pytest.mark.parametrize("message", [b"\x08\x80", b"\x0a\x05ab", b"\x0b", b"\x08" + b"\xff" * 11])
def test_bytes_that_are_no_message(message: bytes) -> None:
    """Are refused, and never read beyond their end."""
    with pytest.raises(WireError):
        list(fields_of(message))


def test_a_negative_number() -> None:
    """Is written as a huge one."""
    assert signed((1 << 64) - 1) == -1
    assert signed(7) == 7
