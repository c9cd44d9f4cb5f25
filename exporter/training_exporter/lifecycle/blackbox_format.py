# SPDX-License-Identifier: Apache-2.0
"""How a black box lies on the disk: a head, and slots that are either whole or seen to be torn.

A process may be killed in the middle of any write. So each slot has a checksum of its own, and what
is replaced has two slots that take turns: the last but one stays whole while the last is written.

    head                      who wrote it, and the names of the sums; written once
    two slots of text         the run's state and what was counted up to some step
    two slots of sums         what changes between steps
    a ring of steps           the last steps, from which those after the state are counted
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from operator import attrgetter
from struct import Struct, unpack
from typing import Any, Final, NamedTuple
from zlib import crc32

from training_exporter.signals import StepSignals

MAGIC: Final = b"TRNBOX\x00\x01"
"""The last byte is the version of the format."""
RING: Final = 256
STATE_EVERY: Final = 100
"""Steps from one state to the next. Twice as many are in the ring, since the last state may be
torn."""
KEPT_STEPS: Final = 200
MOST_SUMS: Final = 62

_CHECK: Final = Struct("<I")
_TEXT: Final = Struct("<QI")
_ORDER: Final = Struct("<Q")
_FIELDS: Final = (
    "timestamp", "loss", "grad_norm", "clip_threshold", "loss_scale", "skipped", "epoch",
    "max_steps", "tokens", "samples", "step_seconds", "data_wait_seconds",
    "memory_allocated_bytes", "positions", "flops",
)  # fmt: skip
_values_of = attrgetter(*_FIELDS)
_STEP: Final = Struct(f"<Qq{len(_FIELDS) + 1}d")
_STEP_BITS: Final = Struct(f"<Qq{len(_FIELDS) + 1}Q")
_ABSENT_BITS: Final = 0x7FF8_6162_7365_6E74
(_ABSENT,) = unpack("<d", _ORDER.pack(_ABSENT_BITS))
"""What stands for None: a NaN that no arithmetic yields, since NaN itself is a value."""

HEAD_SIZE: Final = 4096
TEXT_SIZE: Final = 16384
SUMS_SIZE: Final = 512
STEP_SIZE: Final = _STEP.size + _CHECK.size
TEXTS_AT: Final = HEAD_SIZE
SUMS_AT: Final = TEXTS_AT + 2 * TEXT_SIZE
STEPS_AT: Final = SUMS_AT + 2 * SUMS_SIZE
FILE_SIZE: Final = STEPS_AT + RING * STEP_SIZE

assert RING >= 2 * STATE_EVERY
assert _ORDER.size + 8 * MOST_SUMS + _CHECK.size <= SUMS_SIZE


class NumberedStep(NamedTuple):
    """A step, and its number among those that the process has noted, from 1."""

    number: int
    signals: StepSignals


def text_slot(order: int, content: Mapping[str, Any], size: int) -> bytes:
    """A slot of JSON.

    Raises:
        ValueError: it does not fit in, or JSON cannot hold it.
    """
    text = json.dumps(content, separators=(",", ":"), default=float).encode()
    if _TEXT.size + len(text) + _CHECK.size > size:
        raise ValueError(f"{len(text)} bytes do not fit into a slot of {size}")
    return _sealed(_TEXT.pack(order, len(text)) + text)


def read_text(slot: bytes) -> tuple[int, dict[str, Any]] | None:
    """Order and content of a slot of JSON; None when it is empty or torn."""
    order, length = _TEXT.unpack_from(slot)
    body = _opened(slot, _TEXT.size + length)
    if body is None:
        return None
    content = json.loads(body[_TEXT.size :])
    return (order, content) if isinstance(content, dict) else None


def sums_slot(order: int, values: Sequence[float]) -> bytes:
    return _sealed(Struct(f"<Q{len(values)}d").pack(order, *values))


def read_sums(slot: bytes, count: int) -> tuple[int, tuple[float, ...]] | None:
    """Order and values of a slot of `count` sums; None when it is empty or torn."""
    layout = Struct(f"<Q{count}d")
    body = _opened(slot, layout.size)
    if body is None:
        return None
    order, *values = layout.unpack(body)
    return order, tuple(values)


def step_slot(number: int, signals: StepSignals) -> bytes:
    """A step; of the learning rates the first.

    Raises:
        struct.error: a field is not a number.
    """
    rate = next(iter(signals.learning_rates.values()), None)
    values = [
        _ABSENT if value is None else value for value in (*_values_of(signals), rate)
    ]  # fmt: skip
    body = _STEP.pack(number, signals.step, *values)
    return body + _CHECK.pack(crc32(body))


def read_step(slot: bytes) -> NumberedStep | None:
    """The step in a slot; None when it is empty or torn."""
    body = _opened(slot, _STEP.size)
    if body is None:
        return None
    number, step, *values = _STEP.unpack(body)
    bits = _STEP_BITS.unpack(body)[2:]
    known = [None if b == _ABSENT_BITS else v for v, b in zip(values, bits, strict=True)]
    rate = known.pop()
    fields: dict[str, Any] = dict(zip(_FIELDS, known, strict=True))
    for name, kind in (("skipped", bool), ("max_steps", int)):
        fields[name] = None if fields[name] is None else kind(fields[name])
    rates = {} if rate is None else {"0": rate}
    return NumberedStep(number, StepSignals(step, learning_rates=rates, **fields))


def is_empty(slot: bytes) -> bool:
    """Whether nothing was ever written there."""
    return not any(slot)


def _sealed(body: bytes) -> bytes:
    return body + _CHECK.pack(crc32(body))


def _opened(slot: bytes, length: int) -> bytes | None:
    """The first `length` bytes, if the checksum after them says that they are whole."""
    if length + _CHECK.size > len(slot):
        return None
    body = slot[:length]
    return body if _CHECK.unpack_from(slot, length) == (crc32(body),) else None
