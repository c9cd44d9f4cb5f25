# SPDX-License-Identifier: Apache-2.0
"""Steps that have become much slower."""

from __future__ import annotations

from math import inf

from training_exporter.catalog import THROUGHPUT_DROP
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

_BLOCK = 32
_BLOCKS = 8


class ThroughputDrop(StatefulDetector):
    """Most of the recent steps ran at less than `drop` times the usual pace.

    The pace is tokens per second where tokens are known, else steps per second; waiting for data
    counts as part of the step, as that is what usually slows a run. The usual pace is the median of
    the medians of the last 8 blocks of 32 steps. `patience` more slow steps than quick ones are a
    drop; a single slow step, as after an evaluation, is none. Value and threshold are paces.
    """

    kind = THROUGHPUT_DROP
    _learnt = ("_levels", "_fresh", "_slow", "_by_token")

    def __init__(self, *, drop: float = 0.5, patience: float = 10) -> None:
        require("drop", drop, above=0, below=1)
        self._drop = drop
        self._patience = whole("patience", patience, least=2)
        self._forget()

    def _forget(self) -> None:
        self._levels: list[float] = []
        self._fresh: list[float] = []
        self._slow = 0
        self._by_token = False
        self._settle()

    def observe(self, signals: StepSignals) -> Verdict:
        cost = signals.step_seconds
        if cost is None:
            return self._quiet
        wait = signals.data_wait_seconds
        if wait is not None:
            cost += wait
        tokens = signals.tokens
        if tokens:
            cost /= tokens
        elif tokens is not None:
            return self._quiet
        if not 0.0 < cost < inf:
            return self._quiet
        if (tokens is None) is self._by_token:
            self._change_unit()
        fresh = self._fresh
        fresh.append(cost)
        verdict = self._quiet if cost <= self._limit and not self._slow else self._judge(cost)
        if len(fresh) >= _BLOCK:
            self._absorb()
        return verdict

    def _judge(self, cost: float) -> Verdict:
        """Count a slow step up and a quick one down."""
        slow = self._slow + 1 if cost > self._limit else self._slow - 1
        self._slow = min(slow, 2 * self._patience)
        if slow < self._patience:
            return self._quiet
        return Finding(1.0 / cost, 1.0 / self._limit)

    def _change_unit(self) -> None:
        """Seconds per step and seconds per token are not to be compared: start afresh."""
        by_token = not self._by_token
        self._forget()
        self._by_token = by_token

    def _absorb(self) -> None:
        fresh = self._fresh
        fresh.sort()
        self._levels.append(fresh[_BLOCK // 2])
        del self._levels[:-_BLOCKS]
        fresh.clear()
        self._settle()

    def _settle(self) -> None:
        """Set the time above which a step is slow."""
        levels = self._levels
        self._quiet: Quiet = HEALTHY if levels else WARMING_UP
        self._limit = sorted(levels)[len(levels) // 2] / self._drop if levels else inf
