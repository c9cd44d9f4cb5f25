# SPDX-License-Identifier: Apache-2.0
"""A loss that swings around its trend."""

from __future__ import annotations

from training_exporter.catalog import LOSS_OSCILLATION
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
_HALF = _BLOCK // 2
_TAIL = 3
"""Losses at either end of a sorted block that count as spikes, not as the swing."""
_NEAR_ZERO = 0.1
"""Below this share of its highest level, what a loss does is noise around its end."""


class LossOscillation(StatefulDetector):
    """The loss swings by more than `swing` times its level, and does not move on meanwhile.

    Judged once per block of 32 steps: half the distance between the 10 % and the 90 % quantile,
    relative to the mean, or to a tenth of the highest mean so far when that is more, as a loss that
    has come close to zero must not raise false alarms. The two halves of the block must have nearly
    the same mean, or else it is a trend or a level shift. It must hold for `patience` blocks in a
    row. A loss that is not always positive has no level to be relative to, and is left alone.
    """

    kind = LOSS_OSCILLATION
    _learnt = ("_fresh", "_blocks", "_wild", "_top", "_last")

    def __init__(self, *, swing: float = 0.5, patience: float = 3) -> None:
        require("swing", swing, above=0, below=1)
        self._swing = swing
        self._patience = whole("patience", patience, least=1)
        self._forget()

    def _forget(self) -> None:
        self._fresh: list[float] = []
        self._blocks = 0
        self._wild = 0
        self._top = 0.0
        self._last = 0.0
        self._settle()

    def observe(self, signals: StepSignals) -> Verdict:
        loss = signals.loss
        if loss is None or loss - loss != 0.0:
            return self._quiet
        fresh = self._fresh
        fresh.append(loss)
        if len(fresh) >= _BLOCK:
            self._close_block()
        return self._verdict

    def _close_block(self) -> None:
        fresh = self._fresh
        first, second = sum(fresh[:_HALF]) / _HALF, sum(fresh[_HALF:]) / _HALF
        drift, level = abs(first - second), (first + second) / 2.0
        fresh.sort()
        spread = (fresh[-1 - _TAIL] - fresh[_TAIL]) / 2.0
        positive = fresh[0] > 0.0
        fresh.clear()
        self._top = max(self._top, level)
        self._last = spread / max(level, _NEAR_ZERO * self._top) if positive else 0.0
        wild = self._last > self._swing and drift < spread
        self._wild = self._wild + 1 if wild else 0
        self._blocks = min(self._blocks + 1, self._patience)
        self._settle()

    def _settle(self) -> None:
        """Set the verdict that holds until the next block is closed."""
        self._quiet: Quiet = HEALTHY if self._blocks >= self._patience else WARMING_UP
        self._verdict: Verdict = self._quiet
        if self._wild >= self._patience:
            self._verdict = Finding(self._last, self._swing)
