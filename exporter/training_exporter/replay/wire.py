# SPDX-License-Identifier: Apache-2.0
"""The wire format of protocol buffers, as far as scalars in logs need it.

TensorBoard's package could read its files too, but is heavy and stops at the first damage; W&B's
has no reader in Python any more. See https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_SIZES = {FIXED64: 8, FIXED32: 4}


class WireError(Exception):
    """These bytes are no message."""


def fields_of(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and content of each field: an int where it is a varint, else its bytes.

    Raises:
        WireError: when the message does not go on as one.
    """
    place, end = 0, len(message)
    while place < end:
        key, place = varint(message, place)
        kind = key & 7
        if kind == VARINT:
            value, place = varint(message, place)
            yield key >> 3, value
            continue
        if kind == BYTES:
            size, place = varint(message, place)
        elif kind in _SIZES:
            size = _SIZES[kind]
        else:
            raise WireError(f"a field of kind {kind}")
        if place + size > end:
            raise WireError("a field that is longer than its message")
        yield key >> 3, message[place : place + size]
        place += size


def varint(message: bytes, place: int) -> tuple[int, int]:
    """A number from a place on, and where it ends.

    Raises:
        WireError: when it does not end.
    """
    value = shift = 0
    try:
        while True:
            byte = message[place]
            place += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, place
            shift += 7
            if shift > 63:
                raise WireError("a number that does not end")
    except IndexError:
        raise WireError("a number that is cut off") from None


def signed(value: int) -> int:
    """A varint as the signed number of 64 bits that it stands for."""
    return value - (1 << 64) if value >= 1 << 63 else value
