# SPDX-License-Identifier: Apache-2.0
"""A loss that has left its level for good."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, log
from typing import Any

from training_exporter.catalog import DIVERGENCE
from training_exporter.detectors.base import (
    HEALTHY,
    WARMING_UP,
    Finding,
    Quiet,
    StatefulDetector,
    Verdict,
    require,
)
from training_exporter.signals import StepSignals

_BLOCK = 32
_BLOCKS = 8
_FIRST_BLOCKS = (3, 5, 8, 16)
"""A run that diverges after a resume does so within a few steps: be ready early."""
_LARGEST_RISE = 3.0
"""What one step may add: a single wild loss is a spike, however high."""


class RobustDivergence(StatefulDetector):
    """Evidence that the loss stays above its level, summed up over the steps.

    Page's one-sided cumulative sum ("Continuous inspection schemes", Biometrika 1954) on the
    logarithm of the loss: `S_t = max(0, S_(t-1) + log(loss_t / level) - slack)`, a divergence when
    S exceeds `evidence`. The level is the median over the last 256 losses, so that a loss which
    keeps a new level is its own level in the end. The slack is `drift` or, on a noisy run, half of
    the typical logarithmic span of 32 losses. Losses that are not positive have no logarithm; where
    there are any, differences to the level are taken in units of that span.
    """

    kind = DIVERGENCE
    _learnt = ("_levels", "_spans", "_lowest", "_fresh", "_sum")

    def __init__(self, *, drift: float = 0.1, evidence: float = 7.0) -> None:
        require("drift", drift, above=0)
        require("evidence", evidence, above=0)
        self._drift = drift
        self._evidence = evidence
        self._forget()

    def _forget(self) -> None:
        self._levels: list[float] = []
        self._spans: list[float] = []
        self._lowest: list[float] = []
        self._fresh: list[float] = []
        self._sum = 0.0
        self._derive()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        if not len(self._levels) == len(self._spans) == len(self._lowest):
            self._levels, self._spans, self._lowest = [], [], []
        self._derive()

    def observe(self, signals: StepSignals) -> Verdict:
        loss = signals.loss
        if loss is None or loss - loss != 0.0:
            return self._quiet
        fresh = self._fresh
        fresh.append(loss)
        # At the level and without evidence, which is nearly always, there is nothing to sum up.
        verdict = self._quiet if loss <= self._limit and self._sum == 0.0 else self._judge(loss)
        if len(fresh) >= self._due:
            self._absorb()
        return verdict

    def _judge(self, loss: float) -> Verdict:
        if self._limit == inf:  # there is no level yet, or it is 0 exactly
            self._sum = 0.0
            return self._quiet
        level, slack = self._level, self._slack
        if self._unit == 0.0:
            rise = log(loss) - log(level) if loss > 0.0 else -_LARGEST_RISE
        else:
            rise = (loss - level) / self._unit
        total = self._sum + min(rise, _LARGEST_RISE) - slack
        # Without a cap a long divergence would take as long to be forgotten.
        self._sum = min(max(0.0, total), 2.0 * self._evidence)
        return Finding(total, self._evidence) if total > self._evidence else self._quiet

    def _absorb(self) -> None:
        fresh, levels = self._fresh, self._levels
        fresh.sort()
        levels.append(fresh[len(fresh) // 2])
        self._lowest.append(fresh[0])
        self._spans.append(fresh[-1] - fresh[0])
        if len(levels) > _BLOCKS:
            del levels[0], self._lowest[0], self._spans[0]
        fresh.clear()
        self._derive()

    def _derive(self) -> None:
        """Set level, slack and the limit below which a loss adds no evidence."""
        levels = self._levels
        self._quiet: Quiet = HEALTHY if levels else WARMING_UP
        self._due = _FIRST_BLOCKS[len(levels)] if len(levels) < len(_FIRST_BLOCKS) else _BLOCK
        self._limit = inf
        self._level = self._slack = self._unit = 0.0
        if not levels:
            return
        self._level = level = sorted(levels)[len(levels) // 2]
        span = sorted(self._spans)[len(levels) // 2]
        if sorted(self._lowest)[0] > 0.0:  # min() is slower
            slack = 0.5 * log(1.0 + span / level)
            self._slack = slack if slack > self._drift else self._drift
            self._limit = level * (1.0 + self._slack)
        elif span > 0.0:
            self._unit, self._slack = span, 1.0
            self._limit = level + span
