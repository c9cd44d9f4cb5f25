# SPDX-License-Identifier: Apache-2.0
"""A gradient norm that has shrunk to nothing."""

from __future__ import annotations

from training_exporter.catalog import GRADIENT_VANISHING
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


class TextbookGradientVanishing(StatefulDetector):
    """`g_t < eps`, or `g_t / g_(t-K) < delta`."""

    kind = GRADIENT_VANISHING
    _learnt = ("_ring", "_place")

    def __init__(self, *, eps: float = 1e-7, delta: float = 0.01, lag: float = 100) -> None:
        require("eps", eps, above=0)
        require("delta", delta, above=0, below=1)
        self._eps = eps
        self._delta = delta
        self._lag = whole("lag", lag, least=1)
        self._forget()

    def _forget(self) -> None:
        self._ring: list[float] = []
        self._place = 0

    def observe(self, signals: StepSignals) -> Verdict:
        norm = signals.grad_norm
        ring = self._ring
        ready = len(ring) >= self._lag
        if norm is None or norm - norm != 0.0:
            return HEALTHY if ready else WARMING_UP
        limit = self._eps
        if ready:
            place = self._place
            limit = max(limit, self._delta * ring[place])
            ring[place] = norm
            self._place = place + 1 if place + 1 < self._lag else 0
        else:
            ring.append(norm)
        if norm < limit:
            return Finding(norm, limit)
        return HEALTHY if ready else WARMING_UP


class RobustGradientVanishing(BlockDetector):
    """Several gradient norms in a row below `eps`, or below `delta` times their usual level.

    The level is the median of the last `window` norms. Norms of a healthy run may fall a
    hundredfold over its first hundreds of steps, but not within one window.
    """

    kind = GRADIENT_VANISHING
    _learnt = ("_levels", "_fresh", "_run")

    def __init__(
        self, *, eps: float = 1e-7, delta: float = 0.01, patience: float = 5, window: float = 128
    ) -> None:
        require("eps", eps, above=0)
        require("delta", delta, above=0, below=1)
        self._eps = eps
        self._delta = delta
        self._patience = whole("patience", patience, least=1)
        self._kept = whole("window", window, least=16) // BLOCK
        self._forget()

    def _forget(self) -> None:
        self._run = 0
        super()._forget()

    def _derive(self, level: float | None, blocks: int) -> None:
        ready = level is not None and blocks >= self._kept
        self._quiet = HEALTHY if ready else WARMING_UP
        usual = level if level is not None and ready else 0.0
        self._limit = max(self._eps, self._delta * usual)

    def observe(self, signals: StepSignals) -> Verdict:
        norm = signals.grad_norm
        if norm is None or norm - norm != 0.0:
            return self._quiet
        fresh = self._fresh
        fresh.append(norm)
        verdict: Verdict = self._quiet
        if norm < self._limit:
            self._run += 1
            if self._run >= self._patience:
                verdict = Finding(norm, self._limit)
        elif self._run:
            self._run = 0
        if len(fresh) >= self._due:
            self._absorb()
        return verdict
