# SPDX-License-Identifier: Apache-2.0
"""Accelerator memory that creeps up."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from training_exporter.catalog import MEMORY_GROWTH
from training_exporter.detectors.base import (
    HEALTHY,
    WARMING_UP,
    Finding,
    Quiet,
    StatefulDetector,
    Verdict,
    require,
)
from training_exporter.detectors.blocks import whole
from training_exporter.signals import StepSignals

_KEPT = 16
"""Floors of a window."""
_SCALES = 16
"""Windows, each twice as long as the one before; the longest is of four million readings."""
_STAIR = 4.5
"""The growth is at least so many times its third-largest rise, which makes five equal stairs."""
_HALF = 0.25
"""The least share of the growth that lies in each half of a window."""
_NEW = 0.7
"""The least share of the growth that lies above all that was held before the window."""
_STAYING = 3.0
"""How much more may be given back while a leak goes on than at its beginning."""


class _Window:
    """The last floors of one scale, and the leak found in them.

    Attributes:
        record: the highest floor up to the first of the window.
        leak: bytes per step, 0 for none.
    """

    __slots__ = ("floors", "leak", "record")

    def __init__(self, floors: list[float], record: float, leak: float = 0.0) -> None:
        self.floors = floors[-_KEPT:]
        self.record = record
        self.leak = leak

    def add(self, floor: float) -> None:
        floors = self.floors
        floors.append(floor)
        if len(floors) > _KEPT:
            del floors[0]
            if floors[0] > self.record:
                self.record = floors[0]

    def state_dict(self) -> dict[str, Any]:
        return {"floors": list(self.floors), "record": self.record, "leak": self.leak}


class MemoryGrowth(StatefulDetector):
    """The memory in use keeps rising, by more than `slope` bytes per step.

    Value and threshold are slopes in bytes per step. Judged are the floors of blocks, as a leak
    lifts the least that is held, and long sequences only the peaks. Blocks are of `block` readings,
    of twice as many, of four times, and so on; of each length the last 16 floors are a window, so
    that a fast leak is found soon and a slow one in the end. A window leaks when its floors rise by
    `growth` bytes or more and give back at most `setback` of their rises, when the growth lies in
    both of its halves and for the most part above all that was held before, and when it is made of
    five rises at least, as evaluations that leak make them. The two greatest rises count no more
    than the third: optimiser states, a cache or a new data set, which are a step up or two, are no
    leak. The value is the slope of the longest window that leaks. What fills up slowly, over more
    than some 100 readings, looks like a leak until it is full or is let go for the first time.
    """

    kind = MEMORY_GROWTH

    def __init__(
        self,
        *,
        slope: float = 1000,
        growth: float = 32e6,
        setback: float = 0.1,
        block: float = 8,
    ) -> None:
        require("slope", slope, above=0)
        require("growth", growth, above=0)
        require("setback", setback, above=0, below=1)
        self._slope = slope
        self._growth = growth
        self._least_new = _NEW * growth
        self._setback = setback
        self._block = whole("block", block, least=2)
        self._forget()

    def _forget(self) -> None:
        self._floor: float | None = None
        self._count = 0
        self._blocks = 0
        self._begin: int | None = None
        self._windows: list[_Window] = []
        self._settle()

    def state_dict(self) -> dict[str, Any]:
        return {
            "floor": self._floor,
            "count": self._count,
            "blocks": self._blocks,
            "begin": self._begin,
            "windows": [window.state_dict() for window in self._windows],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._forget()
        self._floor = state.get("floor")
        self._count = 0 if self._floor is None else state.get("count", 0)
        self._blocks = state.get("blocks", 0)
        self._begin = state.get("begin") if self._blocks else None
        for saved in state.get("windows", [])[:_SCALES]:
            floors = saved["floors"]
            self._windows.append(_Window(floors, saved["record"], saved["leak"]))
        self._settle()

    def observe(self, signals: StepSignals) -> Verdict:
        held = signals.memory_allocated_bytes
        if held is None or held - held != 0.0:
            return self._quiet
        floor = self._floor
        if floor is None or held < floor:
            self._floor = floor = held
        self._count = count = self._count + 1
        if count >= self._block:
            self._close_block(signals.step, floor)
        return self._verdict

    def _close_block(self, step: int, floor: float) -> None:
        """Enter the floor into the first window, and into each longer one whose block is full."""
        self._floor, self._count = None, 0
        if self._begin is None:
            self._begin, self._blocks = step, 0
        # The mean over the run: readings may be of every tenth step only.
        steps = (step - self._begin) / (self._blocks or 1)
        self._blocks = blocks = self._blocks + 1
        changed = self._quiet is WARMING_UP
        for window in self._windows:
            window.add(floor)
            # Nothing that is judged by more costly means leaks without this.
            if window.leak or floor - window.record >= self._least_new:
                window.leak = self._leak(window, steps)
                changed = True
            if blocks & 1:
                break
            floor = min(window.floors[-2:])
            blocks >>= 1
            steps *= 2
        else:
            if len(self._windows) < _SCALES:
                self._windows.append(_Window([floor], floor))
        if changed:
            self._settle()

    def _leak(self, window: _Window, steps: float) -> float:
        """The bytes per step that a window leaks, 0 for none.

        Args:
            steps: how many of them lie between two floors.
        """
        floors = window.floors
        if len(floors) < _KEPT or steps <= 0:
            return 0.0
        rises = [after - before for before, after in pairwise(floors)]
        third = sorted(rises)[-3]
        rises = [min(rise, third) for rise in rises]
        grown = sum(rises)
        back = -sum([rise for rise in rises if rise < 0])
        allowed = self._setback * _STAYING if window.leak else self._setback
        half = len(rises) // 2
        halves = sum(rises[:half]), sum(rises[-half:])
        leaks = (
            grown >= max(self._growth, third * _STAIR)
            and back <= allowed * (grown + back)
            and min(halves) >= _HALF * grown
            and floors[-1] - window.record >= _NEW * grown
        )
        slope = grown / (steps * len(rises))
        return slope if leaks and slope > self._slope else 0.0

    def _settle(self) -> None:
        """Set the verdict that holds until the next block is closed."""
        windows = self._windows
        ready = bool(windows) and len(windows[0].floors) >= _KEPT
        self._quiet: Quiet = HEALTHY if ready else WARMING_UP
        self._verdict: Verdict = self._quiet
        for window in windows:
            if window.leak:
                self._verdict = Finding(window.leak, self._slope)
