# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gzip
import math
from collections.abc import Callable
from pathlib import Path
from random import Random
from struct import pack

import pytest

from tests.unit.replay.logs import read, scalar_event, tf_record, varint
from training_exporter.replay.crc32c import masked_crc
from training_exporter.replay.stream import Stream
from training_exporter.replay.tfevents import any_scalars_of, scalars, scalars_of
from training_exporter.replay.tfrecords import begins_with_record
from training_exporter.replay.trouble import Troubles
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


def test_the_time_of_a_step_is_that_of_its_first_event(tmp_path: Path) -> None:
    """What is logged of it later is of no other time."""
    later = bytearray(scalar_event(3, "lr", 0.5))
    later[1:9] = pack("<d", 2e9)
    path = events(
        tmp_path / "events", tf_record(scalar_event(3, "loss", 2.0)), tf_record(bytes(later))
    )

    assert read(scalars, path)[0] == [
        {"_step": 3, "_timestamp": 1e9 + 3, "loss": 2.0, "lr": 0.5},
    ]


def test_a_damaged_event_is_left_out(tmp_path: Path) -> None:
    """One flipped bit in its value, and the events behind it are still read."""
    damaged = bytearray(tf_record(scalar_event(2, "loss", 2.0)))
    damaged[-6] ^= 1
    good = [tf_record(scalar_event(step, "loss", 1.0)) for step in (1, 3)]
    path = events(tmp_path / "events", good[0], bytes(damaged), good[1])

    records, troubles = read(scalars, path)

    assert [record["_step"] for record in records] == [1, 3]
    assert troubles == ["1 event that is damaged and was left out"]


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


def _field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def _event(summary: bytes, step: int = 7) -> bytes:
    return b"\x09" + pack("<d", 1e9) + b"\x10" + varint(step) + _field(5, summary)


def _value(*parts: bytes) -> bytes:
    return _field(1, b"".join(parts))


def _simple(value: float) -> bytes:
    return b"\x15" + pack("<f", value)


_TAG = _field(1, b"loss")
_TENSOR = _field(8, b"\x08\x01" + _field(4, pack("<f", 3.0)))
EVENTS = {
    "a usual one": _event(_value(_TAG, _simple(1.5))),
    "a value like a key": _event(_value(_TAG, _simple(1.5)[:1] + b"\x15\x0a\x2a\x10")),
    "a tag that is long": _event(_value(_field(1, b"long/" * 50), _simple(1.5))),
    "a tag that is no text": _event(_value(_field(1, b"\xff\x15\x2a"), _simple(1.5))),
    "no tag": _event(_value(_simple(1.5))),
    "two values": _event(_value(_TAG, _simple(1.0)) + _value(_field(1, b"b"), _simple(2.0))),
    "the tag at the end": _event(_value(_simple(1.5), _TAG)),
    "a value twice": _event(_value(_TAG, _simple(1.0), _simple(2.0))),
    "a value of four bytes": _event(_value(_TAG, _field(2, pack("<f", 1.5)))),
    "another number at the end": _event(_value(_TAG, b"\x1d" + pack("<f", 1.5))),
    "a tensor": _event(_value(_TAG, _TENSOR)),
    "a tensor that is described": _event(_value(_TAG, _TENSOR, _field(9, _field(1, b"scalars")))),
    "a tensor of nothing": _event(_value(_TAG, _field(8, b"\x08\x01"))),
    "a step of ten bytes": _event(_value(_TAG, _simple(1.5)), (1 << 64) - 5),
    "a step of nine bytes": _event(_value(_TAG, _simple(1.5)), (1 << 63) - 1),
    "a step that comes later": _event(_value(_TAG, _simple(1.5))) + b"\x10\x09",
    "no time": b"\x10\x05" + _field(5, _value(_TAG, _simple(1.5))),
    "no step": b"\x09" + pack("<d", 1e9) + _field(5, _value(_TAG, _simple(1.5))),
    "a version": b"\x09" + pack("<d", 1e9) + _field(3, b"brain.Event:2"),
    "nothing": b"",
}
"""Events by what they are; the first is the usual one."""


def _outcome(read_event: Callable[[bytes], object], event: bytes) -> str:
    """What comes of it, as text, as NaN is not equal to itself."""
    try:
        return repr(read_event(event))
    except Exception as error:
        return type(error).__name__


@pytest.mark.parametrize("event", EVENTS.values(), ids=EVENTS.keys())
def test_the_fast_way_reads_what_the_long_way_reads(event: bytes) -> None:
    """Whoever wrote an event, and whatever is cut off, changed or put into it."""
    random = Random(event)
    assert _outcome(scalars_of, event) == _outcome(any_scalars_of, event)
    for _ in range(2000):
        changed = bytearray(event)
        for _ in range(random.randint(1, 3)):
            place = random.randrange(len(changed) + 1)
            kept = changed[place + random.choice([0, 1, 1, 1, 1, 4]) :]
            changed[place:] = random.randbytes(random.choice([0, 1, 1, 1, 1, 4])) + kept
        assert _outcome(scalars_of, bytes(changed)) == _outcome(any_scalars_of, bytes(changed))


def test_a_value_that_is_no_number(tmp_path: Path) -> None:
    """Stays what it is."""
    values = [math.nan, math.inf, -0.0]
    path = events(
        tmp_path / "events",
        *(tf_record(scalar_event(step, "loss", value)) for step, value in enumerate(values)),
    )

    records, _ = read(scalars, path)

    assert [str(record["loss"]) for record in records] == ["nan", "inf", "-0.0"]


def test_an_event_is_there_as_soon_as_it_was_written(tmp_path: Path) -> None:
    """However many bytes come at a time, none behind an event is waited for."""
    steps = range(1, 8)
    written = [tf_record(scalar_event(step, "loss", 1.0)) for step in steps]
    path = events(tmp_path / "events", written[0], written[1][:20])
    rest = [written[1][20:], b"".join(written[2:4]) + written[4][:5], written[4][5:12]]
    rest += [written[4][12:], b"".join(written[5:])]
    seen: list[object] = []
    seen_before_waiting: list[int] = []

    def more() -> bool:
        seen_before_waiting.append(len(seen))
        if not rest:
            return False
        with path.open("ab") as file:
            file.write(rest.pop(0))
        return True

    stream = Stream(path, more)
    for record in filter(None, scalars(stream, Troubles())):
        seen.append(record["_step"])  # noqa: PERF401  # `more` looks at it meanwhile
    stream.close()

    # The last event stays with the reader, as others of its step may follow.
    assert seen_before_waiting == [0, 1, 3, 3, 4, 6]
    assert seen == list(steps)


def test_a_long_event_is_passed_over(tmp_path: Path) -> None:
    """A picture is larger than what is read at once, and nobody minds if it is damaged."""
    picture = bytearray(tf_record(_event(_value(_TAG, _field(4, bytes(300_000))))))
    picture[1000] ^= 1
    good = [tf_record(scalar_event(step, "loss", 1.0)) for step in (1, 2)]
    path = events(tmp_path / "events", good[0], bytes(picture), good[1])

    records, troubles = read(scalars, path)

    assert [record["_step"] for record in records] == [1, 2]
    assert troubles == []


def test_many_events(tmp_path: Path) -> None:
    """More than are read at once, with two that are damaged far from each other."""
    records = [tf_record(scalar_event(step, "loss", step / 2)) for step in range(5000)]
    for step in (7, 4000):
        damaged = bytearray(records[step])
        damaged[-7] ^= 0x80
        records[step] = bytes(damaged)
    path = events(tmp_path / "events", *records)

    found, troubles = read(scalars, path)

    expected = [step for step in range(5000) if step not in (7, 4000)]
    assert [record["_step"] for record in found] == expected
    assert [record["loss"] for record in found] == [step / 2 for step in expected]
    assert troubles == ["2 events that are damaged and were left out"]


def test_an_archive_that_is_cut_off(tmp_path: Path) -> None:
    """What is before that is read."""
    records = b"".join(tf_record(scalar_event(step, "loss", 1.0)) for step in range(5000))
    path = tmp_path / "events.gz"
    path.write_bytes(gzip.compress(records)[:-20])

    found, troubles = read(scalars, path)

    assert len(found) > 4500
    assert [record["_step"] for record in found] == list(range(len(found)))
    assert len(troubles) == 2
    assert troubles[0].startswith("1 archive that is damaged or cut off")
    assert troubles[1] == "1 last event that is cut off and was left out"


def test_an_archive_that_is_damaged(tmp_path: Path) -> None:
    """It is told once, and what it is."""
    packed = bytearray(gzip.compress(tf_record(scalar_event(1, "loss", 1.0))))
    packed[-5] ^= 1
    path = tmp_path / "events.gz"
    path.write_bytes(packed)

    found, troubles = read(scalars, path)

    assert len(found) == 1
    assert len(troubles) == 1
    assert "CRC check failed" in troubles[0]


def test_what_is_an_event_file() -> None:
    """By its first bytes, whatever it is called."""
    assert begins_with_record(tf_record(b""))
    assert not begins_with_record(b"step,loss\n1,2\n3,4")
    assert not begins_with_record(b"short")


@pytest.mark.parametrize("message", [b"\x08\x80", b"\x0a\x05ab", b"\x0b", b"\x08" + b"\xff" * 11])
def test_bytes_that_are_no_message(message: bytes) -> None:
    """Are refused, and never read beyond their end."""
    with pytest.raises(WireError):
        list(fields_of(message))


def test_a_negative_number() -> None:
    """Is written as a huge one."""
    assert signed((1 << 64) - 1) == -1
    assert signed(7) == 7
