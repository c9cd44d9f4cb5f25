# SPDX-License-Identifier: Apache-2.0
"""Small logs of runs in which it is known what went wrong."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from random import Random
from struct import pack

from training_exporter.replay.crc32c import masked_crc
from training_exporter.replay.stream import Stream
from training_exporter.replay.trouble import Troubles

SPIKE, NAN = 150, 220
ROWS = 300


def rows(stride: int = 1) -> list[dict[str, float]]:
    """A healthy run but for one spike of the loss and one NaN, at row SPIKE and NAN."""
    random = Random(1)
    values = []
    for row in range(1, ROWS + 1):
        loss = 2 + 3 / row**0.5 + random.gauss(0, 0.02)
        loss = {SPIKE: 9.0, NAN: math.nan}.get(row, loss)
        norm = abs(random.gauss(0.6, 0.05))
        rate = 1e-3 / row**0.5
        step = row * stride
        values.append({"step": step, "loss": loss, "grad_norm": norm, "learning_rate": rate})
    return values


def write_csv(path: Path, records: Iterable[Mapping[str, float]]) -> Path:
    records = list(records)
    names = list(dict.fromkeys(name for record in records for name in record))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(records)
    return path


def write_json_lines(path: Path, records: Iterable[Mapping[str, object]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def write_trainer_state(path: Path, records: Iterable[Mapping[str, object]]) -> Path:
    """As transformers writes it: sorted and indented, with bare NaN."""
    state = {"best_metric": None, "log_history": list(records), "max_steps": ROWS}
    path.write_text(json.dumps(state, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return path


def tf_record(event: bytes) -> bytes:
    length = pack("<Q", len(event))
    return length + pack("<I", masked_crc(length)) + event + pack("<I", masked_crc(event))


def scalar_event(step: int, tag: str, value: float) -> bytes:
    """An `Event` with one simple value."""
    name = tag.encode()
    inner = b"\x0a" + bytes([len(name)]) + name + b"\x15" + pack("<f", value)
    summary = b"\x0a" + bytes([len(inner)]) + inner
    time = b"\x09" + pack("<d", 1e9 + step)
    return time + b"\x10" + varint(step) + b"\x2a" + bytes([len(summary)]) + summary


def varint(number: int) -> bytes:
    parts = []
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])


def read(kind: object, path: Path) -> tuple[list[dict[str, object]], list[str]]:
    """All records that a reader finds in a file but for empty ones, and what it complains of."""
    troubles = Troubles()
    stream = Stream(path)
    try:
        return list(filter(None, kind(stream, troubles))), troubles.lines()  # type: ignore[operator]
    finally:
        stream.close()
