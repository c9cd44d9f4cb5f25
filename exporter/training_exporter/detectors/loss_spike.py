# SPDX-License-Identifier: Apache-2.0
"""A loss that is suddenly far above its recent level."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from operator import sub
from typing import Any

from training_exporter.catalog import LOSS_SPIKE
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
from training_exporter.smoothing import Ema

_BLOCK = 8
_BLOCKS = 8
_SIGNED = 2.0
"""How much more a signed loss must rise: it often jumps by a multiple of its usual span."""
_WILDEST = 1e6
"""Noise beyond this is all the same, and its power must not overflow."""
_FIRST_BLOCK = 3
"""A run that diverges after a resume does so within a few steps: be ready early."""


class TextbookLossSpike(StatefulDetector):
    """`loss_t / EMA(loss) > gamma`, the average taken over the steps before this one.

    A ratio to an average that is not positive says nothing, so such steps are healthy.
    """

    kind = LOSS_SPIKE
    _learnt = ("_ema",)

    def __init__(self, *, gamma: float = 2.0, beta: float = 0.99) -> None:
        require("gamma", gamma, above=1)
        require("beta", beta, least=0, below=1)
        self._gamma = gamma
        self._beta = beta
        self._forget()

    def _forget(self) -> None:
        self._ema = Ema(self._beta)

    def observe(self, signals: StepSignals) -> Verdict:
        loss = signals.loss
        ema = self._ema
        level = ema.value
        if loss is None or loss - loss != 0.0:
            return WARMING_UP if level is None else HEALTHY
        ema.update(loss)
        if level is None:
            return WARMING_UP
        if level > 0.0 and loss > self._gamma * level:
            return Finding(loss, self._gamma * level)
        return HEALTHY


class RobustLossSpike(StatefulDetector):
    """One loss above everything recent, or several above nearly everything recent.

    Losses are gathered in blocks of 8, of which only the highest and the lowest are kept. With
    `noise` the median of highest / lowest over the last 8 blocks, a loss is a spike when it exceeds

    - `max(jump, noise ** jump_noise)` times the highest loss of the last block, or when the median
      of the last 5 exceeds
    - `max(shift, noise ** shift_noise)` times the highest loss of a typical one of the last 4.

    A noisy run thereby needs a higher spike than a calm one. When any of those losses is not
    positive, ratios mean nothing: noise is then the largest of highest minus lowest, and twice the
    exponents times that is added to the same two losses.
    """

    kind = LOSS_SPIKE
    _learnt = ("_highs", "_lows", "_tail", "_fresh")

    def __init__(
        self,
        *,
        jump: float = 1.5,
        shift: float = 1.2,
        jump_noise: float = 1.5,
        shift_noise: float = 0.75,
    ) -> None:
        require("jump", jump, above=1)
        require("shift", shift, above=1)
        require("jump_noise", jump_noise, above=0, most=10)
        require("shift_noise", shift_noise, above=0, most=10)
        self._jump = jump
        self._shift = shift
        self._jump_noise = jump_noise
        self._shift_noise = shift_noise
        self._forget()

    def _forget(self) -> None:
        self._highs: list[float] = []
        self._lows: list[float] = []
        self._ratios: list[float] = []
        self._tail: list[float] = []
        self._fresh: list[float] = []
        self._derive()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        if len(self._highs) != len(self._lows):
            self._highs, self._lows = [], []
        self._ratios = list(map(_ratio, self._highs, self._lows))
        self._derive()

    def observe(self, signals: StepSignals) -> Verdict:
        loss = signals.loss
        if loss is None or loss - loss != 0.0:
            return self._quiet
        fresh = self._fresh
        fresh.append(loss)
        verdict = self._quiet if loss <= self._lower_limit else self._judge(loss)
        if len(fresh) >= self._due:
            self._absorb()
        return verdict

    def _judge(self, loss: float) -> Verdict:
        """Judge a loss above the lower one of the two limits."""
        if loss > self._jump_limit:
            return Finding(loss, self._jump_limit)
        recent = sorted((self._tail + self._fresh)[-5:])
        if len(recent) == 5 and recent[2] > self._shift_limit:
            return Finding(recent[2], self._shift_limit)
        return self._quiet

    def _absorb(self) -> None:
        """Close the block: keep its highest and lowest loss, and set the limits for the next."""
        fresh, highs, lows, ratios = self._fresh, self._highs, self._lows, self._ratios
        self._tail = fresh[-4:]
        fresh.sort()  # a third of the cost of max() and min()
        high, low = fresh[-1], fresh[0]
        fresh.clear()
        highs.append(high)
        lows.append(low)
        ratios.append(_ratio(high, low))
        if len(highs) > _BLOCKS:
            del highs[0], lows[0], ratios[0]
        self._derive()

    def _derive(self) -> None:
        """Set both limits and the length of the next block from the blocks so far."""
        highs = self._highs
        blocks = len(highs)
        if not blocks:
            self._quiet: Quiet = WARMING_UP
            self._due = _FIRST_BLOCK
            self._jump_limit = self._shift_limit = self._lower_limit = inf
            return
        self._quiet = HEALTHY
        self._due = _BLOCK if blocks > 1 else _BLOCK - _FIRST_BLOCK
        level = _upper_median(highs[-4:])
        ratios = sorted(self._ratios)
        if ratios[0] > 0.0:
            noise = ratios[blocks // 2]
            if noise > _WILDEST:
                noise = _WILDEST
            jump, shift = noise**self._jump_noise, noise**self._shift_noise
            jump_limit = highs[-1] * (jump if jump > self._jump else self._jump)
            shift_limit = level * (shift if shift > self._shift else self._shift)
        else:
            spans = sorted(map(sub, highs, self._lows))
            # A loss that was mostly 0 exactly, as at the start of GRPO, has no usual span yet.
            noise = spans[-1] if spans[blocks // 2] > 0.0 else inf
            jump_limit = highs[-1] + _SIGNED * self._jump_noise * noise
            shift_limit = level + _SIGNED * self._shift_noise * noise
        self._jump_limit, self._shift_limit = jump_limit, shift_limit
        self._lower_limit = jump_limit if jump_limit < shift_limit else shift_limit


def _upper_median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def _ratio(high: float, low: float) -> float:
    """Noise of a block, 0 where a ratio means nothing."""
    return high / low if low > 0.0 else 0.0
