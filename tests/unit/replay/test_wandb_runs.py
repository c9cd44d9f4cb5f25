# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from struct import pack
from zlib import crc32

from tests.unit.replay.logs import read, rows, varint
from training_exporter.replay.stream import Stream
from training_exporter.replay.trouble import Troubles
from training_exporter.replay.wandb_runs import history

BLOCK = 1 << 15
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def history_record(values: Mapping[str, object]) -> bytes:
    """A `Record` with what was logged at one time."""
    items = [
        field(1, field(1, name.encode()) + field(16, json.dumps(value).encode()))
        for name, value in values.items()
    ]
    return field(2, b"".join(items))


def chunk(kind: int, data: bytes) -> bytes:
    return pack("<IHB", crc32(data, crc32(bytes([kind]))), len(data), kind) + data


def leveldb_log(messages: Sequence[bytes]) -> bytes:
    """As W&B writes it: messages go over the ends of blocks in chunks."""
    log = bytearray(b":W&B" + b"\0" * 3)
    for message in messages:
        first = True
        while True:
            room = BLOCK - len(log) % BLOCK
            if room < 7:
                log += bytes(room)
                continue
            part, message = message[: room - 7], message[room - 7 :]
            kinds = (FULL, FIRST) if first else (LAST, MIDDLE)
            log += chunk(kinds[bool(message)], part)
            first = False
            if not message:
                break
    return bytes(log)


def write_wandb(path: Path, records: Sequence[Mapping[str, object]]) -> Path:
    path.write_bytes(leveldb_log([history_record(record) for record in records]))
    return path


def test_messages_that_go_over_blocks(tmp_path: Path) -> None:
    """Of any length, also where the end of a block has no room for a chunk."""
    long = [{"step": step, "text": "x" * (step * 4001)} for step in range(30)]
    ends = [
        {"step": 1, "text": "x" * (BLOCK - 7 - 7 - size - 44)} for size in range(20)
    ]  # so that the first block ends shortly behind it

    for records in (long, *([end, {"step": 2}] for end in ends)):
        assert read(history, write_wandb(tmp_path / "run.wandb", records)) == (records, [])


def test_a_damage_costs_the_rest_of_its_block(tmp_path: Path) -> None:
    """And the record that goes into the next one."""
    path = write_wandb(tmp_path / "run.wandb", [{"step": n, "x": "x" * 999} for n in range(100)])
    damaged = bytearray(path.read_bytes())
    damaged[BLOCK + 500] ^= 1
    path.write_bytes(damaged)

    records, troubles = read(history, path)

    steps = [record["step"] for record in records]
    ((before, after),) = [(a, b) for a, b in pairwise(steps) if b != a + 1]
    assert (steps[0], steps[-1]) == (0, 99)
    assert 30 < before < after < 66
    assert troubles == ["1 blocks of records that are damaged, and were read up to there"]


def test_a_record_is_handed_on_as_soon_as_it_is_there(tmp_path: Path) -> None:
    """Long before its block is full, and however little is written at a time."""
    whole = leveldb_log([history_record(record) for record in rows()[:5]])
    path = tmp_path / "run.wandb"
    path.write_bytes(b"")
    written = 0

    def wait() -> bool:
        nonlocal written
        with path.open("ab") as file:
            file.write(whole[written : written + 10])
        written += 10
        return written < len(whole) + 10

    stream = Stream(path, wait)
    seen = [(record["step"], written) for record in history(stream, Troubles())]
    stream.close()

    ends = [len(leveldb_log([history_record(row) for row in rows()[:n]])) for n in range(1, 6)]
    assert [step for step, _ in seen] == [1, 2, 3, 4, 5]
    assert all(end <= at < end + 10 for (_, at), end in zip(seen, ends, strict=True))
