# SPDX-License-Identifier: Apache-2.0
"""Memory at the end of each step: simulated traces, and real ones of small PyTorch trainings."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from random import Random

from benchmarks.report import QUICK, often

KIB, MIB, GIB = 2.0**10, 2.0**20, 2.0**30
SEEDS = 1 if QUICK else 3


@dataclass(frozen=True)
class Trace:
    """Bytes held at the end of each step, and the leak that is in it.

    Attributes:
        leak: bytes lost per step, on average; 0 in a healthy run.
        begins: step from which on it leaks.
    """

    name: str
    held: array[float]
    leak: float = 0.0
    begins: int = 1

    @property
    def steps(self) -> int:
        return len(self.held)


Shape = Callable[[Random], Iterator[float]]
"""An endless series of bytes, to be added to others."""


def level(low: float = 20 * GIB, high: float = 60 * GIB) -> Shape:
    """Weights and activations, and from the second step on the optimiser's states."""

    def shape(random: Random) -> Iterator[float]:
        held = random.uniform(low, high)
        yield held / 2
        while True:
            yield held

    return shape


def lengths(most: float) -> Shape:
    """A batch and its outputs are still held, and no two are of the same length."""

    def shape(random: Random) -> Iterator[float]:
        while True:
            yield most * random.betavariate(1.5, 3.0)

    return shape


def drifting(deviation: float, memory: float) -> Shape:
    """Neighbouring batches are alike: noise that is correlated over `memory` steps."""

    def shape(random: Random) -> Iterator[float]:
        keep = 1.0 - 1.0 / memory
        kick = deviation * (1.0 - keep * keep) ** 0.5
        at = 0.0
        while True:
            at = keep * at + random.gauss(0.0, kick)
            yield at

    return shape


def record(most: float) -> Shape:
    """A workspace that grows whenever there is a longer sequence than ever before."""

    def shape(random: Random) -> Iterator[float]:
        largest = 0.0
        while True:
            largest = max(largest, most * random.betavariate(1.5, 3.0))
            yield largest

    return shape


def jumps(number: int, least: float, most: float, within: int) -> Shape:
    """A few one-off changes that stay: a cache, a new data set, what an evaluation left."""

    def shape(random: Random) -> Iterator[float]:
        places = {random.randrange(within): random.uniform(least, most) for _ in range(number)}
        held, step = 0.0, 0
        while True:
            held += places.get(step, 0.0)
            step += 1
            yield held

    return shape


def evaluations(every: int, peak: float, leftover: float) -> Shape:
    """A peak in the step after an evaluation, and something left that the next one replaces."""

    def shape(random: Random) -> Iterator[float]:
        step, left = 0, 0.0
        while True:
            step += 1
            if step % every == 0:
                left = random.uniform(0.0, leftover)
            yield left + peak * (step % every == 0)

    return shape


def sawtooth(gain: float, period: int) -> Shape:
    """Something gathered at each step and let go every `period` steps, as values to be logged."""

    def shape(random: Random) -> Iterator[float]:
        step = random.randrange(period)
        while True:
            step += 1
            yield gain * (step % period)

    return shape


def alternating(size: float, every: int) -> Shape:
    """Gradients that are held on all steps but every so many."""

    def shape(_: Random) -> Iterator[float]:
        step = 0
        while True:
            step += 1
            yield size * (step % every != 0)

    return shape


def filling(size: float, time: float) -> Shape:
    """A cache that fills up, ever more slowly."""

    def shape(_: Random) -> Iterator[float]:
        missing = size
        while True:
            missing -= missing / time
            yield size - missing

    return shape


def leaking(gain: float, begins: int = 1, every: int = 1) -> Shape:
    """`gain` bytes more for good, on every so many steps."""

    def shape(_: Random) -> Iterator[float]:
        step, lost = 0, 0.0
        while True:
            step += 1
            if step >= begins and step % every == 0:
                lost += gain
            yield lost

    return shape


def now_and_then(gain: float, share: float) -> Shape:
    """A leak on a share of the steps, as on a path that only some batches take."""

    def shape(random: Random) -> Iterator[float]:
        lost = 0.0
        while True:
            lost += gain * (random.random() < share)
            yield lost

    return shape


HEALTHY: dict[str, tuple[int, list[Shape]]] = {
    "constant": (5_000, [level()]),
    "lengths vary, 3 GiB": (20_000, [level(), lengths(3 * GIB)]),
    "lengths drift over 100 steps": (20_000, [level(), drifting(0.3 * GIB, 100)]),
    "lengths drift over 1,000 steps": (20_000, [level(), drifting(0.3 * GIB, 1000)]),
    "workspace for the longest so far": (20_000, [level(), record(8 * GIB)]),
    "three one-off steps": (10_000, [level(), jumps(3, 0.1 * GIB, 4 * GIB, 10_000)]),
    "three one-off steps close together": (3_000, [level(), jumps(3, 0.1 * GIB, 4 * GIB, 300)]),
    "evaluation peaks and leftovers": (20_000, [level(), evaluations(500, 8 * GIB, 0.2 * GIB)]),
    "1 MiB a step until logged, 100 steps": (20_000, [level(), sawtooth(MIB, 100)]),
    "1 MiB a step until the epoch ends": (20_000, [level(), sawtooth(MIB, 2000)]),
    "gradients held on 3 steps of 4": (5_000, [level(), alternating(2 * GIB, 4)]),
    "a cache fills over 30 steps": (5_000, [level(), filling(2 * GIB, 30)]),
    "a cache fills over 300 steps": (5_000, [level(), filling(2 * GIB, 300)]),
    "one loss kept, 512 bytes a step": (80_000, [level(), leaking(512.0)]),
}
"""Steps, and the shapes whose sum is the trace."""

LEAKING: dict[str, tuple[int, float, int, list[Shape]]] = {
    "16 MiB a step": (2_000, 16 * MIB, 1, [level(), leaking(16 * MIB)]),
    "1 MiB a step": (5_000, MIB, 1, [level(), leaking(MIB)]),
    "64 KiB a step": (5_000, 64 * KIB, 1, [level(), leaking(64 * KIB)]),
    "4 KiB a step": (20_000, 4 * KIB, 1, [level(), leaking(4 * KIB)]),
    "1 MiB a step from step 15,000 on": (20_000, MIB, 15_000, [level(), leaking(MIB, 15_000)]),
    "16 MiB a step, lengths vary": (
        4_000, 16 * MIB, 1, [level(), lengths(3 * GIB), leaking(16 * MIB)]),
    "1 MiB a step, lengths vary": (20_000, MIB, 1, [level(), lengths(3 * GIB), leaking(MIB)]),
    "64 KiB a step, lengths vary": (
        20_000, 64 * KIB, 1, [level(), lengths(3 * GIB), leaking(64 * KIB)]),
    "1 MiB a step, lengths drift": (
        20_000, MIB, 1, [level(), drifting(0.3 * GIB, 100), leaking(MIB)]),
    "1 MiB a step, three one-off steps": (
        5_000, MIB, 1, [level(), jumps(3, 0.1 * GIB, 4 * GIB, 3000), leaking(MIB)]),
    "1 MiB a step, evaluation peaks": (
        5_000, MIB, 1, [level(), evaluations(500, 8 * GIB, 0.2 * GIB), leaking(MIB)]),
    "64 KiB a step under a sawtooth": (
        20_000, 64 * KIB, 1, [level(), sawtooth(MIB, 100), leaking(64 * KIB)]),
    "50 MiB at each evaluation, 500 steps": (
        20_000, 0.1 * MIB, 1, [level(), leaking(50 * MIB, every=500)]),
    "20 MiB at each checkpoint, 2,000 steps": (
        30_000, 0.01 * MIB, 1, [level(), leaking(20 * MIB, every=2000)]),
    "8 MiB on one step of 20": (5_000, 0.4 * MIB, 1, [level(), now_and_then(8 * MIB, 0.05)]),
}  # fmt: skip
"""Steps, bytes lost per step, step from which on, and the shapes whose sum is the trace."""


def simulated() -> Iterator[Trace]:
    """Each simulated case with each seed."""
    for name, (steps, shapes) in HEALTHY.items():
        for seed in range(SEEDS):
            yield Trace(name, _sum(shapes, seed, steps))
    for name, (steps, leak, begins, shapes) in LEAKING.items():
        for seed in range(SEEDS):
            yield Trace(name, _sum(shapes, seed, steps), leak, begins)


def _sum(shapes: list[Shape], seed: int, steps: int) -> array[float]:
    series = [shape(Random(seed * 100 + place)) for place, shape in enumerate(shapes)]
    return array("d", map(sum, islice(zip(*series, strict=True), often(steps))))
