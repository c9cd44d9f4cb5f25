# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest

from training_exporter.values import MAX_NAME, clean_text, merge_capped, numbers_of


def test_only_plain_numbers_come_through() -> None:
    """None, text, bools, lists and the like among logged values are left out, numbers are not."""
    values = {"a": 1, "b": 2.5, "c": None, "d": "3", "e": True, "f": [1.0], "g": Fraction(1, 2)}

    assert numbers_of({**values, "h": Decimal(1)}) == {"a": 1.0, "b": 2.5, "g": 0.5}


def test_tensors_are_read_where_nobody_waits_for_them() -> None:
    """One on the CPU is there; one on a device may have to be waited for, and is left out."""
    torch = pytest.importorskip("torch")
    values = {
        "cpu": torch.tensor(1.0),
        "several": torch.ones(2),
        "device": torch.ones((), device="meta"),
    }

    assert numbers_of(values) == {"cpu": 1.0}


def test_a_number_too_large_for_a_float_takes_only_itself_along() -> None:
    """The others of the same log come through."""
    assert numbers_of({"huge": 10**400, "a": 1}) == {"a": 1.0}


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("rewards/<lambda>/mean", "rewards/<lambda>/mean"),
        ("\ud800 lone", "? lone"),
        ("nul\0", "nul"),
        (17, "17"),
        ("x" * 1000, "x" * MAX_NAME),
    ],
)
def test_any_name_becomes_a_valid_label_value(text: object, clean: str) -> None:
    """Symbols stay, what a page cannot hold goes."""
    assert clean_text(text) == clean


def test_the_cap_keeps_known_names_and_counts_new_ones() -> None:
    """A series never stops because another one came up."""
    merged, dropped = merge_capped({"a": 1.0, "b": 2.0}, {"c": 3.0, "a": 9.0, "d": 4.0}, 3)

    assert merged == {"a": 9.0, "b": 2.0, "c": 3.0}
    assert dropped == 1
