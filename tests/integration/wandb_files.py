# SPDX-License-Identifier: Apache-2.0
"""What is in the file of an offline W&B run, by W&B's own messages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from struct import unpack_from
from typing import Any

from wandb.proto import wandb_internal_pb2

BLOCK = 1 << 15
FILE_HEADER = 7
FULL, LAST = 1, 4


def only_run(folder: Path) -> Path:
    """The file of the only run below a folder."""
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    return file


def messages(file: Path) -> Iterator[Any]:
    """The records of a file that is whole: a LevelDB log with a header of W&B's."""
    data, place, parts = file.read_bytes(), FILE_HEADER, b""
    while place + 7 <= len(data):
        if BLOCK - place % BLOCK < 7:  # no room for a chunk, so the block is filled up
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = unpack_from("<IHB", data, place)
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (FULL, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def rows(file: Path) -> list[dict[str, Any]]:
    """What was logged, a row each."""
    return [
        {
            "/".join(item.nested_key) or item.key: json.loads(item.value_json)
            for item in record.history.item
        }
        for record in messages(file)
        if record.HasField("history")
    ]


def alerts(file: Path) -> list[tuple[str, str, str, int]]:
    """Title, text, level and seconds to wait of each alert."""
    found = [record.alert for record in messages(file) if record.HasField("alert")]
    return [(a.title, a.text, a.level, a.wait_duration // 1000) for a in found]


def summary(file: Path) -> dict[str, Any]:
    """The last value of each key of the summary."""
    values = {}
    for record in messages(file):
        for item in record.summary.update:
            values["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
    return values


def exit_code(file: Path) -> int:
    """What the run ended with."""
    (code,) = [m.exit.exit_code for m in messages(file) if m.HasField("exit")]
    return int(code)
