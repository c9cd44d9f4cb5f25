# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from training_exporter.demo.plan import (
    DEFAULT_FAULTS,
    FAULTS,
    Fault,
    default_faults,
    parse_fault,
    parse_faults,
)


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_is_read_as_it_is_written(kind: str) -> None:
    """What the panel prints can be given back as an option."""
    fault = Fault(kind, 12)

    assert parse_fault(str(fault)) == fault


@pytest.mark.parametrize("text", ["", "@5", "bang@5", "NAN@5", "nan nan@5"])
def test_an_unknown_kind_is_told_the_known_ones(text: str) -> None:
    """The form and every kind are in the message."""
    with pytest.raises(ValueError, match="KIND@STEP, KIND one of") as caught:
        parse_fault(text)

    assert all(kind in str(caught.value) for kind in FAULTS)


@pytest.mark.parametrize("text", ["nan", "nan@", "nan@0", "nan@-3", "nan@5.0", "nan@x", "nan@5@6"])
def test_a_step_that_is_none_is_refused(text: str) -> None:
    """Steps are counted from 1, as everywhere."""
    with pytest.raises(ValueError, match=r"nan@STEP, STEP a number from 1 on"):
        parse_fault(text)


def test_faults_are_put_in_order() -> None:
    """As they will come, not as they were typed."""
    assert parse_faults(["stall@9", "nan@3"], steps=10) == (Fault("nan", 3), Fault("stall", 9))


def test_a_fault_after_the_end_is_refused() -> None:
    """It would never come, which nobody who asks for it wants."""
    with pytest.raises(ValueError, match="nan@11 comes after the last step, which is 10"):
        parse_faults(["nan@11"], steps=10)


@pytest.mark.parametrize(("steps", "number"), [(39, 0), (40, 1), (429, 3), (430, 4), (3000, 4)])
def test_default_faults_that_come_and_those_that_do_not(steps: int, number: int) -> None:
    """The step of a fault may be the last one."""
    assert default_faults(steps) == (DEFAULT_FAULTS[:number], DEFAULT_FAULTS[number:])


def test_the_default_faults_do_not_overlap_the_plateau() -> None:
    """The losses of an explosion would hide it."""
    assert [fault.kind for fault in DEFAULT_FAULTS] == ["nan", "plateau", "explosion", "slow-data"]
    assert list(DEFAULT_FAULTS) == sorted(DEFAULT_FAULTS, key=lambda fault: fault.step)
