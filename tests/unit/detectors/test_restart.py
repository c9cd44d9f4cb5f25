# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Iterable

from tests.unit.detectors.feed import findings
from training_exporter.detectors import HEALTHY, WARMING_UP, Finding, Restart, Verdict
from training_exporter.signals import StepSignals


def at(*steps: int) -> list[Verdict]:
    return observe(Restart(), steps)


def observe(detector: Restart, steps: Iterable[int]) -> list[Verdict]:
    return [detector.observe(StepSignals(step, 0.0)) for step in steps]


def test_a_step_that_goes_back_or_repeats() -> None:
    """The threshold is the first step that would have been in order."""
    assert at(10, 11, 5, 6) == [WARMING_UP, HEALTHY, Finding(5.0, 12.0), HEALTHY]
    assert at(10, 11, 11, 12) == [WARMING_UP, HEALTHY, Finding(11.0, 12.0), HEALTHY]


def test_a_step_far_ahead() -> None:
    """More than 500 strides are a jump, fewer are lost steps."""
    assert at(1, 2, 502)[-1] is HEALTHY
    assert at(1, 2, 503)[-1] == Finding(503.0, 502.0)
    assert findings(at(*range(1, 100), 5000, *range(5001, 5100))) == [99]


def test_any_stride_will_do() -> None:
    """Rows every step, every 500 steps, or first the one and then the other."""
    assert not findings(at(*range(0, 50_000, 500)))
    assert not findings(at(*range(100), *range(500, 50_000, 500)))
    assert findings(at(*range(0, 50_000, 500), 400_000)) == [100]


def test_lost_rows_are_no_restart() -> None:
    """Here and there a row is dropped."""
    assert not findings(at(*[step for step in range(1, 1000) if step % 7]))


def test_a_resume_of_saved_state_is_judged_on_its_first_step() -> None:
    """What was trained twice has a step number below the last one that was seen."""
    old = Restart()
    observe(old, range(1, 101))
    new = Restart()
    new.load_state_dict(old.state_dict())
    assert observe(new, [51])[-1] == Finding(51.0, 101.0)
