# SPDX-License-Identifier: Apache-2.0
"""Accelerator memory that creeps up."""

from __future__ import annotations

from operator import lt

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


class MemoryGrowth(StatefulDetector):
    """The least memory in use rises from block to block, `blocks` times in a row.

    The least of each block of `block` readings, as a leak lifts the floor while long sequences lift
    only the peaks. Together the rises must exceed `growth`, relative to the first of these floors.
    """

    kind = MEMORY_GROWTH
    _learnt = ("_floors", "_floor", "_count")

    def __init__(self, *, growth: float = 0.02, block: float = 10, blocks: float = 6) -> None:
        require("growth", growth, above=0)
        self._growth = growth
        self._block = whole("block", block, least=2)
        self._kept = whole("blocks", blocks, least=2) + 1
        self._forget()

    def _forget(self) -> None:
        self._floors: list[float] = []
        self._floor: float | None = None
        self._count = 0
        self._settle()

    def observe(self, signals: StepSignals) -> Verdict:
        held = signals.memory_allocated_bytes
        if held is None or held - held != 0.0:
            return self._quiet
        floor = self._floor
        if floor is None or held < floor:
            self._floor = held
        self._count = count = self._count + 1
        if count >= self._block:
            self._close_block()
        return self._verdict

    def _close_block(self) -> None:
        if self._floor is not None:
            self._floors.append(self._floor)
        self._floor, self._count = None, 0
        self._settle()

    def _settle(self) -> None:
        """Set the verdict that holds until the next block is closed."""
        floors = self._floors
        del floors[: -self._kept]
        ready = len(floors) >= self._kept
        self._quiet: Quiet = HEALTHY if ready else WARMING_UP
        self._verdict: Verdict = self._quiet
        rises = all(map(lt, floors, floors[1:]))
        if ready and rises and floors[0] > 0:
            growth = floors[-1] / floors[0] - 1.0
            if growth > self._growth:
                self._verdict = Finding(growth, self._growth)
