# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from random import Random

import pytest

from tests.unit.detectors.feed import NAN, feed, findings
from training_exporter.detectors import HEALTHY, WARMING_UP, Finding, MemoryGrowth

GIB = 2.0**30


def readings(leak_per_reading: float, count: int = 200) -> list[float | None]:
    """Memory of steps of varying length, read on every tenth of them."""
    random = Random(0)
    series: list[float | None] = []
    for reading in range(count):
        peak = GIB * random.choice([0.0, 0.5, 1.0, 3.0])
        series += [None] * 9 + [8 * GIB + leak_per_reading * reading + peak]
    return series


def test_a_leak_is_found() -> None:
    """Forty MiB a reading under peaks of gigabytes."""
    verdicts = feed(MemoryGrowth(), "memory_allocated_bytes", readings(40 * 2.0**20))
    found = [verdict for verdict in verdicts if isinstance(verdict, Finding)]
    assert found
    assert found[0].value > found[0].threshold == 0.02


def test_steady_memory_is_healthy() -> None:
    """Peaks come and go, the floor stays."""
    verdicts = feed(MemoryGrowth(), "memory_allocated_bytes", readings(0.0))
    assert not findings(verdicts)
    assert verdicts[-1] is HEALTHY


def test_a_single_step_up_is_no_leak() -> None:
    """Optimiser states and caches are allocated once."""
    series = [8 * GIB] * 100 + [12 * GIB] * 200
    assert not findings(feed(MemoryGrowth(), "memory_allocated_bytes", series))


def test_growth_at_the_edge() -> None:
    """Six rises that make two per cent together are legal, more is not."""
    small = [100.0 + n // 10 * 0.33 for n in range(70)]
    large = [100.0 + n // 10 * 0.34 for n in range(70)]
    assert feed(MemoryGrowth(), "memory_allocated_bytes", small)[-1] is HEALTHY
    assert feed(MemoryGrowth(), "memory_allocated_bytes", large)[-1] == Finding(
        pytest.approx(0.0204), 0.02
    )


def test_unknown_memory_is_never_judged() -> None:
    """None and NaN leave it warming up."""
    assert feed(MemoryGrowth(), "memory_allocated_bytes", [None, NAN] * 300)[-1] is WARMING_UP
