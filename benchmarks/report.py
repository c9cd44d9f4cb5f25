# SPDX-License-Identifier: Apache-2.0
"""How benchmarks measure and what they say of the machine."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from statistics import median
from time import perf_counter

PACKAGES = ("prometheus-client", "torch", "transformers", "tensorboard", "wandb")

QUICK = os.environ.get("BENCHMARKS_QUICK") == "1"
"""Whether it is enough to see that the benchmarks run, as in CI: what they measure means nothing
then."""
QUICK_SHARE = 20


def often(times: int) -> int:
    """So many times; in a quick run a small share of them, and at least twice."""
    return max(2, times // QUICK_SHARE) if QUICK else times


def print_machine() -> None:
    """Machine and versions, without which a number means nothing."""
    print(f"{platform.platform()}, {_processor()}, {os.cpu_count()} cores")
    print(f"Python {platform.python_version()}, {', '.join(filter(None, map(_version, PACKAGES)))}")
    if QUICK:
        print("A quick run: it shows that the benchmarks work, and its numbers mean nothing.")


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            names = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
    except OSError:
        names = []
    return names[0] if names else platform.machine()


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return ""


Runner = Callable[[int], float]
"""Does something so many times, and returns the seconds that took."""


def repeated(call: Callable[[], object]) -> Runner:
    """A runner of a call without arguments."""

    def run(calls: int) -> float:
        started = perf_counter()
        for _ in range(calls):
            call()
        return perf_counter() - started

    return run


def side_by_side(
    candidates: Mapping[str, Runner], *, rounds: int = 25, calls: int = 2000
) -> dict[str, float]:
    """Seconds per call of each candidate: the median over rounds in which all take turns, so that
    a busy moment of the machine meets all of them."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(often(rounds)):
        for name, run in candidates.items():
            times[name].append(run(calls) / calls)
    return {name: median(measured) for name, measured in times.items()}


def print_ratios(times: Mapping[str, float], reference: str) -> None:
    """A line per candidate: microseconds, and how many times the reference that is."""
    for name, seconds in times.items():
        print(f"{name:48} {seconds * 1e6:10.2f} us  {seconds / times[reference]:8.2f} x")
