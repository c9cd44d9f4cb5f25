# SPDX-License-Identifier: Apache-2.0
"""CRC-32C as TFRecords have it, of one message or of many at once, without a package in C for it.

A byte takes Python 50 ns, and an event of 50 bytes thus more than all else that is done with it.
But a checksum is the remainder of a division of polynomials whose coefficients are bits, and Python
adds thousands of such at once: it XORs two long numbers. So of many messages in a row is asked
only whether they are right all together, and their row is made short by means of a multiple of the
divisor that has few terms: x^5321 + x^3574 + x^2491 + 1, and its squares, whose exponents are
twice those, and so on. That is as fast as calling a package in C for each event.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from struct import Struct

_POLYNOMIAL = 0x82F63B78
"""The divisor, of degree 32; the lowest bit is the coefficient of x^31."""
_NEAREST, _MIDDLE, _FARTHEST = 2491, 3574, 5321
"""Exponents of the multiple. There is no shorter one of four terms but x^5275 + x^4508 + x^2751 + 1
and x^5282 + x^4921 + x^1672 + 1, which take more steps, and none of fewer terms."""
_SHORT = _NEAREST + _FARTHEST
"""Bits of a row that the multiple cannot make shorter."""
_ONES = 0xFFFFFFFF
_MASK = 0xA282EAD8
_CHECKSUM = Struct("<I")


def _crc_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (_POLYNOMIAL & -(value & 1))
        table.append(value)
    return tuple(table)


_TABLE = _crc_table()


def masked_crc(data: bytes) -> int:
    """The checksum of TFRecords: "masked" as in tensorflow/core/lib/hash/crc32c.h."""
    crc = _remainder(data, _ONES) ^ _ONES
    return ((crc >> 15 | crc << 17) + _MASK) & _ONES


def _remainder(data: bytes, remainder: int, table: tuple[int, ...] = _TABLE) -> int:
    for byte in data:
        remainder = table[(remainder ^ byte) & 0xFF] ^ (remainder >> 8)
    return remainder


def all_right(messages: Sequence[tuple[bytes, bytes]]) -> bool:
    """Whether each message has the checksum that stands beside it, in four bytes.

    One that is wrong is always found. Several may hide each other, but only as rarely as damage
    leaves a checksum right: once in four billion times.
    """
    row: list[bytes] = []
    for message, checksum in messages:
        rotated = (_CHECKSUM.unpack(checksum)[0] - _MASK) & _ONES
        row += message, _CHECKSUM.pack((rotated << 15 | rotated >> 17) & _ONES)
    flipped = b"".join([_flips(len(message)) for message, _ in messages])
    number = int.from_bytes(b"".join(row), "little") ^ int.from_bytes(flipped, "little")
    return _is_multiple(number, 8 * len(flipped))


@lru_cache(maxsize=256)
def _flips(size: int) -> bytes:
    """Bits of a message and its checksum to be flipped, that the two be a multiple of the divisor:
    the first 32, as where a checksum begins, and the last 32, as where it ends."""
    return (_ONES ^ _ONES << 8 * size).to_bytes(size + 4, "little")


def _is_multiple(number: int, bits: int) -> bool:
    """Whether the divisor divides a polynomial, whose highest coefficient is the lowest bit."""
    for doubled in reversed(range((bits // _SHORT).bit_length())):
        while bits >= _SHORT << doubled:
            bits -= _NEAREST << doubled
            end = number >> bits
            number ^= end << bits
            for exponent in (_NEAREST, _MIDDLE, _FARTHEST):
                number ^= end << bits - (exponent << doubled)
    return not _remainder(number.to_bytes(bits // 8 + 1, "little"), 0)
