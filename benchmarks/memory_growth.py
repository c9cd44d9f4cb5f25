# SPDX-License-Identifier: Apache-2.0
"""How well leaks are found in the memory at the end of each step, beside two other rules.

The traces are of two sorts: simulated ones, some shapes of healthy and of leaking runs added up
with three seeds each, and real ones, recorded meanwhile from small PyTorch trainings on the CPU.
A false alarm is an alarm in a healthy trace, or before the leak begins; alarms at most ten steps
apart are one. The delay is counted from the beginning of the leak, in steps and in bytes lost.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter, lt
from statistics import median
from typing import Protocol

from benchmarks.memory_traces import MIB, Trace, simulated
from training_exporter.detectors import Finding, MemoryGrowth
from training_exporter.signals import StepSignals

EPISODE_GAP = 10


class Rule(Protocol):
    """Says after each step how fast the memory grows, in bytes per step; 0 for no leak."""

    def observe(self, held: float) -> float: ...


class Ours:
    """The detector of this package."""

    def __init__(self) -> None:
        self._detector = MemoryGrowth()
        self._signals = StepSignals(0, 0.0)

    def observe(self, held: float) -> float:
        self._signals.step += 1
        self._signals.memory_allocated_bytes = held
        verdict = self._detector.observe(self._signals)
        return verdict.value if isinstance(verdict, Finding) else 0.0


class RisingFloors:
    """What this package did before: six blocks of ten steps, each with a higher floor than the one
    before it, that make two per cent together. What it finds at step 70 it mostly owes to the
    optimiser's states, which make the first floor so low that any six rises after it suffice."""

    def __init__(self) -> None:
        self._floors: list[float] = []
        self._block: list[float] = []
        self._slope = 0.0

    def observe(self, held: float) -> float:
        self._block.append(held)
        if len(self._block) == 10:
            self._floors = [*self._floors[-6:], min(self._block)]
            self._block.clear()
            self._slope = self._judge(self._floors)
        return self._slope

    def _judge(self, floors: list[float]) -> float:
        rises = len(floors) == 7 and all(map(lt, floors, floors[1:]))
        leaks = rises and floors[-1] > 1.02 * floors[0]
        return (floors[-1] - floors[0]) / 60 if leaks else 0.0


class WindowedShares:
    """A rule as TraceML describes its own, for one process: after 800 steps, the last 100 are 6 %
    above the last 400, these rise by 1.5 % per 100 steps and by 512 MiB in all, and at most 2 % of
    the highest is given back. Judged every 20 steps. TraceML itself judges peaks of all ranks."""

    def __init__(self) -> None:
        self._held: list[float] = []
        self._steps = 0
        self._slope = 0.0

    def observe(self, held: float) -> float:
        self._held.append(held)
        self._steps += 1
        if self._steps % 20 == 0:
            del self._held[:-400]
            self._slope = self._judge(self._held) if self._steps >= 800 else 0.0
        return self._slope

    def _judge(self, held: list[float]) -> float:
        if held[-1] - held[0] < 512 * MIB:
            return 0.0
        if sum(held[-100:]) / 100 < 1.06 * sum(held) / len(held):
            return 0.0
        highest = max(held)
        back = highest - min(held[held.index(highest) :])
        slope = least_squares(held)
        steep = slope * 100 >= 0.015 * median(held)
        return slope if steep and back <= 0.02 * highest else 0.0


def least_squares(values: Sequence[float]) -> float:
    """The slope of the straight line through values at 0, 1, 2, ..."""
    middle = (len(values) - 1) / 2
    spread = sum([(place - middle) ** 2 for place in range(len(values))])
    return sum([(place - middle) * value for place, value in enumerate(values)]) / spread


RULES: dict[str, Callable[[], Rule]] = {
    "ours": Ours,
    "rising floors": RisingFloors,
    "like TraceML": WindowedShares,
}


@dataclass(frozen=True)
class Outcome:
    """What one rule made of one trace.

    Attributes:
        false: false alarms.
        delay: steps from the beginning of the leak to the first alarm, None when there is none.
        slope: bytes per step at the end, 0 when there is no alarm then.
    """

    trace: Trace
    false: int
    delay: int | None
    slope: float

    @property
    def healthy_steps(self) -> int:
        return self.trace.begins - 1 if self.trace.leak else self.trace.steps

    @property
    def lost(self) -> float | None:
        """Bytes lost at the first alarm."""
        return None if self.delay is None else self.delay * self.trace.leak


def judge(rule: Rule, trace: Trace) -> Outcome:
    """Let a fresh rule see a trace from its first step to its last."""
    alarms: list[int] = []
    last, slope = -EPISODE_GAP, 0.0
    for step, held in enumerate(trace.held, 1):
        slope = rule.observe(held)
        if slope:
            if step - last > EPISODE_GAP:
                alarms.append(step)
            last = step
    begins = trace.begins if trace.leak else trace.steps + 1
    found = [step for step in alarms if step >= begins]
    delay = found[0] - begins + 1 if found else None
    return Outcome(trace, len(alarms) - len(found), delay, slope)


def report(title: str, traces: Iterable[Trace]) -> None:
    """A line per case, and one for all of them."""
    print(f"\n{title}\n{'':<40}" + "".join(f"{name:>24}" for name in RULES))
    outcomes: dict[str, list[Outcome]] = {name: [] for name in RULES}
    for case, group in groupby(traces, key=attrgetter("name")):
        line = f"{case:<40}"
        for trace in list(group):
            for name, rule in RULES.items():
                outcomes[name].append(judge(rule(), trace))
        for name in RULES:
            line += f"{_cell([o for o in outcomes[name] if o.trace.name == case]):>24}"
        print(line, flush=True)
    print(
        f"\n{'all':<16}{'found':>9}{'false alarms':>14}{'per 1,000 steps':>17}"
        f"{'delay, steps':>14}{'MiB lost':>10}{'at most':>9}{'slope off by':>14}"
    )
    for name in RULES:
        print(f"{name:<16}{_summary(outcomes[name])}")


def _cell(outcomes: list[Outcome]) -> str:
    if not outcomes[0].trace.leak:
        return f"{sum(o.false for o in outcomes)} false"
    lost = [o.lost for o in outcomes if o.lost is not None]
    after = f", {median(lost) / MIB:,.0f} MiB" if lost else ""
    return f"{len(lost)}/{len(outcomes)}{after}"


def _summary(outcomes: list[Outcome]) -> str:
    leaks = [o for o in outcomes if o.trace.leak]
    found = [o for o in leaks if o.delay is not None]
    false = sum(o.false for o in outcomes)
    rate = 1000 * false / sum(o.healthy_steps for o in outcomes)
    shown = f"{f'{len(found)}/{len(leaks)}':>9}{false:>14}{rate:>17.4f}"
    if not found:
        return f"{shown}{'-':>14}{'-':>10}{'-':>9}{'-':>14}"
    lost = [o.lost for o in found if o.lost is not None]
    delay = median(o.delay for o in found if o.delay is not None)
    off = [abs(o.slope / o.trace.leak - 1) for o in found if o.slope]
    wrong = f"{median(off):.1%}" if off else "-"
    return f"{shown}{delay:>14,.0f}{median(lost) / MIB:>10,.0f}{max(lost) / MIB:>9,.0f}{wrong:>14}"


def main(_arguments: list[str]) -> None:
    print("Leaks found of those there are, and MiB lost until then (median); false alarms.")
    report("simulated", simulated())
    from benchmarks.memory_training import real  # takes a while to import

    report("real, of small trainings on the CPU with a frozen part of 2 GiB", real())


if __name__ == "__main__":
    main(sys.argv[1:])
