# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Iterable
from random import Random

import pytest

from tests.unit.detectors.feed import NAN, feed, findings
from training_exporter.detectors import HEALTHY, WARMING_UP, Finding, MemoryGrowth, Verdict

MIB, GIB = 2.0**20, 2.0**30
WINDOW = 128
"""Steps of the shortest window: 16 blocks of 8."""


def judged(held: Iterable[float | None], **options: float) -> list[Verdict]:
    return feed(MemoryGrowth(**options), "memory_allocated_bytes", held)


def found(verdicts: Iterable[Verdict]) -> list[Finding]:
    return [verdict for verdict in verdicts if isinstance(verdict, Finding)]


def climbing(gain: float, steps: int, base: float = 40 * GIB) -> list[float]:
    return [base + gain * step for step in range(steps)]


def stairs(at: Iterable[int], height: float, steps: int) -> list[float]:
    """A rise for good at each of some steps."""
    places = set(at)
    held, series = 20 * GIB, []
    for step in range(steps):
        held += height * (step in places)
        series.append(held)
    return series


def test_a_leak_is_found_in_one_window_and_its_slope_named() -> None:
    """One MiB a step, as soon as there are 16 floors, in bytes per step."""
    verdicts = judged(climbing(MIB, 1000))
    assert findings(verdicts) == list(range(WINDOW - 1, 1000))
    assert verdicts[-1] == Finding(pytest.approx(MIB), 1000)


def test_constant_memory_is_healthy_after_one_window() -> None:
    """Sixteen floors are needed to know."""
    verdicts = judged([40 * GIB] * 1000)
    assert set(verdicts[: WINDOW - 1]) == {WARMING_UP}
    assert set(verdicts[WINDOW - 1 :]) == {HEALTHY}


def test_a_slow_leak_of_a_large_model_is_found_in_a_longer_window() -> None:
    """Four KiB a step beside 40 GiB, when 64 MiB are lost: a thousandth of what is held."""
    verdicts = judged(climbing(4096, 16_400))
    assert findings(verdicts)[0] == 16 * 1024 - 1
    assert found(verdicts)[-1].value == pytest.approx(4096)


def test_a_leak_that_begins_late_is_found_as_soon() -> None:
    """The shortest window need not be full of it, and the slope is right once it is."""
    series = [40 * GIB] * 5000
    verdicts = judged(series + climbing(MIB, 5000))
    first = findings(verdicts)[0]
    assert 5000 < first < 5000 + WINDOW
    assert found(verdicts)[0].value == pytest.approx(MIB, rel=0.35)
    assert found(verdicts)[-1].value == pytest.approx(MIB, rel=0.01)


def test_a_leak_under_varying_lengths_is_found() -> None:
    """Four MiB a step, where each step holds up to 3 GiB more than the least."""
    random = Random(0)
    noise = [3 * GIB * random.random() for _ in range(4000)]
    leak = [base + more for base, more in zip(climbing(4 * MIB, 4000), noise, strict=True)]
    verdicts = judged(leak)
    assert findings(verdicts)
    assert verdicts[-1] == Finding(pytest.approx(4 * MIB, rel=0.1), 1000)


def test_varying_lengths_alone_are_healthy() -> None:
    """Peaks come and go, the floor stays."""
    random = Random(0)
    verdicts = judged(20 * GIB + 3 * GIB * random.random() for _ in range(20_000))
    assert not findings(verdicts)
    assert verdicts[-1] is HEALTHY


@pytest.mark.parametrize(
    "steps_up", [[1], [1, 300], [200, 260, 300], [200, 230, 260, 300]], ids=str
)
def test_one_off_steps_up_are_no_leak(steps_up: list[int]) -> None:
    """Optimiser states, a cache, a new data set: up to four, however close together."""
    verdicts = judged(stairs(steps_up, 4 * GIB, 3000))
    assert not findings(verdicts)
    assert verdicts[-1] is HEALTHY


def test_five_steps_up_in_one_window_are_a_leak() -> None:
    """Where four are none."""
    assert judged(stairs([20, 40, 60, 80], 50 * MIB, WINDOW))[-1] is HEALTHY
    assert isinstance(judged(stairs([20, 40, 60, 80, 100], 50 * MIB, WINDOW))[-1], Finding)


def test_a_little_more_at_each_evaluation_is_found_after_several() -> None:
    """Stairs of 50 MiB, 500 steps apart: after five of them at the soonest, nine at the latest."""
    verdicts = judged(stairs(range(500, 10_000, 500), 50 * MIB, 10_000))
    assert 5 * 500 <= findings(verdicts)[0] <= 9 * 500
    assert verdicts[-1] == Finding(pytest.approx(50 * MIB / 500, rel=0.1), 1000)


def test_steps_up_within_a_leak_do_not_blur_its_slope() -> None:
    """Two one-off steps of gigabytes count no more than a block of the leak."""
    jumps = stairs([40, 90], 4 * GIB, WINDOW)
    leak = [base + more for base, more in zip(climbing(MIB, WINDOW), jumps, strict=True)]
    assert judged(leak)[-1] == Finding(pytest.approx(MIB), 1000)


def test_peaks_after_evaluations_are_no_leak() -> None:
    """Ever higher ones neither, as the step after them holds what the step before them did."""
    peaks = [20 * GIB + (step % 50 == 0) * MIB * step for step in range(5000)]
    assert not findings(judged(peaks))


def test_only_the_least_of_a_block_counts() -> None:
    """Every fourth step holds ever more, the others do not."""
    series = [20 * GIB + (step % 4 == 0) * MIB * step for step in range(5000)]
    assert not findings(judged(series))


def test_what_is_let_go_and_gathered_again_is_found_once_at_most() -> None:
    """The first time it looks like a leak; after that, it is no more than was held before."""
    verdicts = judged(20 * GIB + MIB * (step % 1000) for step in range(10_000))
    places = findings(verdicts)
    assert places
    assert places[-1] < 1500
    assert verdicts[-1] is HEALTHY


def test_the_finding_ends_with_the_leak() -> None:
    """Memory that has stopped rising is healthy again, in the long windows too."""
    series = climbing(MIB, 2000)
    verdicts = judged(series + [series[-1]] * 4000)
    assert isinstance(verdicts[1999], Finding)
    assert 2000 < findings(verdicts)[-1] < 4000
    assert verdicts[-1] is HEALTHY


def test_the_least_growth_at_the_edge() -> None:
    """Fifteen rises that make exactly `growth` are a leak, and not a byte less is."""
    series = [100.0 + 10.0 * (step // 2) for step in range(32)]
    options = {"block": 2, "slope": 1.0}
    assert judged(series, growth=150.0, **options)[-1] == Finding(pytest.approx(5.0), 1.0)
    assert judged(series, growth=150.1, **options)[-1] is HEALTHY


def test_the_least_slope_at_the_edge() -> None:
    """A slope of exactly `slope` is legal, however long it lasts; more is not."""
    assert judged(climbing(1000, 5000), growth=1e5)[-1] is HEALTHY
    assert judged(climbing(1001, 5000), growth=1e5)[-1] == Finding(pytest.approx(1001), 1000)


def dented(dip: float) -> list[float]:
    """Floors that rise by 10 fourteen times and fall by `dip` once; two steps each."""
    floors = [100.0]
    for block in range(1, 16):
        floors.append(floors[-1] + (-dip if block == 5 else 10.0))
    return [floor for floor in floors for _ in range(2)]


def test_what_may_be_given_back_at_the_edge() -> None:
    """A tenth of 140 is legal for a leak, more is not."""
    options = {"block": 2, "growth": 50.0, "slope": 0.1}
    assert isinstance(judged(dented(14.0), **options)[-1], Finding)
    assert judged(dented(14.1), **options)[-1] is HEALTHY


def test_a_leak_that_was_found_may_give_back_more() -> None:
    """One that goes on is not lost at the first dent, so that it is one anomaly and not many."""
    series = [100.0 + 5.0 * step - 25.0 * (step >= 40) for step in range(60)]
    verdicts = judged(series, block=2, growth=50.0, slope=0.1)
    assert findings(verdicts) == list(range(31, 60))


def test_the_slope_is_per_step_where_only_every_tenth_step_is_read() -> None:
    """The steps between are quiet, as nothing is known of them."""
    series = [held if step % 10 == 9 else None for step, held in enumerate(climbing(MIB, 5000))]
    verdicts = judged(series)
    assert verdicts[-1] == Finding(pytest.approx(MIB), 1000)
    assert verdicts[-2] is HEALTHY


def test_unknown_memory_is_never_judged() -> None:
    """None and NaN leave it warming up."""
    assert judged([None, NAN] * 300)[-1] is WARMING_UP
