# SPDX-License-Identifier: Apache-2.0
"""A gradient norm far above its usual level."""

from __future__ import annotations

from math import inf

from training_exporter.catalog import GRADIENT_EXPLOSION
from training_exporter.detectors.base import (
    HEALTHY,
    WARMING_UP,
    Finding,
    StatefulDetector,
    Verdict,
    require,
)
from training_exporter.detectors.blocks import BLOCK, BlockDetector, whole
from training_exporter.signals import StepSignals
from training_exporter.smoothing import Ema

_READY = 2
"""Norms that must be known: a run that explodes after a resume does so within a few steps."""


class TextbookGradientExplosion(StatefulDetector):
    """`g_t > alpha EMA(g)`, the average taken over the steps before this one, or above `bound`."""

    kind = GRADIENT_EXPLOSION
    _learnt = ("_ema",)

    def __init__(self, *, alpha: float = 5.0, bound: float = 100.0, beta: float = 0.99) -> None:
        require("alpha", alpha, above=1)
        require("bound", bound, above=0)
        require("beta", beta, least=0, below=1)
        self._alpha = alpha
        self._bound = bound
        self._beta = beta
        self._forget()

    def _forget(self) -> None:
        self._ema = Ema(self._beta)

    def observe(self, signals: StepSignals) -> Verdict:
        norm = signals.grad_norm
        ema = self._ema
        level = ema.value
        if norm is None or norm - norm != 0.0:
            return WARMING_UP if level is None else HEALTHY
        ema.update(norm)
        limit = self._bound
        if level is not None and self._alpha * level < limit:
            limit = self._alpha * level
        if norm > limit:
            return Finding(norm, limit)
        return WARMING_UP if level is None else HEALTHY


class RobustGradientExplosion(BlockDetector):
    """A gradient norm above `ratio` times the median of the last `window` norms.

    The median, unlike an average, is not lifted by the explosion that it is there to judge, and a
    ratio, unlike an absolute bound, holds for any model.
    """

    kind = GRADIENT_EXPLOSION

    def __init__(self, *, ratio: float = 15.0, window: float = 128) -> None:
        require("ratio", ratio, above=1)
        self._ratio = ratio
        self._kept = max(_READY, whole("window", window, least=16) // BLOCK)
        self._forget()

    def _derive(self, level: float | None, blocks: int) -> None:
        ready = level is not None and blocks >= _READY
        self._quiet = HEALTHY if ready else WARMING_UP
        self._limit = self._ratio * level if level is not None and ready else inf

    def observe(self, signals: StepSignals) -> Verdict:
        norm = signals.grad_norm
        if norm is None or norm - norm != 0.0:
            return self._quiet
        fresh = self._fresh
        fresh.append(norm)
        verdict = self._quiet if norm <= self._limit else Finding(norm, self._limit)
        if len(fresh) >= self._due:
            self._absorb()
        return verdict
