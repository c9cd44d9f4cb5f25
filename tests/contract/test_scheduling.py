# SPDX-License-Identifier: Apache-2.0
"""What tests/scheduling.py says of files is about files that are there."""

from __future__ import annotations

from tests.conftest import ROOT
from tests.scheduling import SINGLY, TRAININGS, WAITING, scope_of, turn_of


def test_what_is_named_is_there() -> None:
    """A file that was renamed would silently run beside what it should not, or last."""
    named = [SINGLY, *(file for files in TRAININGS for file in files)]

    assert [file for file in named if not (ROOT / file).is_file()] == []
    assert (ROOT / WAITING).is_dir()


def test_what_belongs_together_is_one_workers() -> None:
    """A file's tests, and the files of a line; but each test by itself where nothing is shared."""
    for files in TRAININGS:
        assert {scope_of(f"{file}::test[{case}]") for file in files for case in "ab"} == {files[0]}
    assert scope_of("tests/unit/test_a.py::test_1") == scope_of("tests/unit/test_a.py::test_2")
    assert scope_of(f"{SINGLY}::test_1") != scope_of(f"{SINGLY}::test_2")


def test_what_takes_longest_begins_first() -> None:
    """Then what waits, what computes, and what fills the gaps."""
    files = (TRAININGS[-1][-1], f"{WAITING}test_a.py", "tests/unit/test_a.py", SINGLY)

    assert [turn_of(f"{file}::test") for file in files] == [0, 1, 2, 3]
