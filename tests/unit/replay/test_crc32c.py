# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from random import Random

import pytest

from training_exporter.replay.crc32c import all_right, masked_crc


def message(random: Random, size: int) -> tuple[bytes, bytes]:
    data = random.randbytes(size)
    return data, masked_crc(data).to_bytes(4, "little")


@pytest.mark.parametrize(
    "sizes", [[], [0], [1, 2, 3, 4, 5], [50] * 3, [1000], [40_000], [50] * 999]
)
def test_messages_that_are_right(sizes: list[int]) -> None:
    """Few or many, short or long, also shorter than their checksum."""
    random = Random(0)
    assert all_right([message(random, size) for size in sizes])


def test_messages_of_any_sizes() -> None:
    """As many as there may be in a block, and one more byte each time."""
    random = Random(1)
    for size in range(900, 1100):
        assert all_right([message(random, random.randrange(100)) for _ in range(20)])
        assert all_right([message(random, size)])


@pytest.mark.parametrize("count", [1, 20, 1500])
def test_any_flipped_bit_is_found(count: int) -> None:
    """In a message or in a checksum, whichever of them it is."""
    random = Random(count)
    messages = [message(random, 45) for _ in range(count)]
    for _ in range(200):
        which, bit = random.randrange(count), random.randrange(49 * 8)
        whole = int.from_bytes(b"".join(messages[which]), "little") ^ 1 << bit
        damaged = whole.to_bytes(49, "little")
        wrong = [*messages[:which], (damaged[:45], damaged[45:]), *messages[which + 1 :]]
        assert not all_right(wrong)


def test_damages_do_not_hide_each_other() -> None:
    """Not even the same one in two messages."""
    random = Random(2)
    data, checksum = message(random, 45)
    wrong = bytes([data[0] ^ 1]) + data[1:], checksum
    assert not all_right([wrong, wrong])
    assert not all_right([(data, checksum), wrong, wrong, (data, checksum)])
