# SPDX-License-Identifier: Apache-2.0
"""A loss that has stopped changing."""

from __future__ import annotations

from math import sqrt

from training_exporter.catalog import LOSS_PLATEAU
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

EPSILON = 1e-8
"""Keeps the relative change defined at a loss of zero."""
_BLOCKS = 64
_STILL = 2.0
"""How much more a plateau may change than what began it, so that one plateau is not found twice."""


class TextbookLossPlateau(StatefulDetector):
    """`|L_t - L_(t-W)| / (|L_(t-W)| + eps) < tau`, `patience` times in a row."""

    kind = LOSS_PLATEAU
    _learnt = ("_ring", "_place", "_run")

    def __init__(self, *, window: float = 200, tau: float = 0.001, patience: float = 5) -> None:
        require("tau", tau, above=0)
        self._size = whole("window", window, least=1)
        self._patience = whole("patience", patience, least=1)
        self._tau = tau
        self._forget()

    def _forget(self) -> None:
        self._ring: list[float] = []
        self._place = 0
        self._run = 0

    def observe(self, signals: StepSignals) -> Verdict:
        loss = signals.loss
        ring = self._ring
        ready = len(ring) >= self._size
        if loss is None or loss - loss != 0.0:
            return HEALTHY if ready else WARMING_UP
        if not ready:
            ring.append(loss)
            return WARMING_UP
        place = self._place
        before = ring[place]
        ring[place] = loss
        self._place = place + 1 if place + 1 < self._size else 0
        change = abs(loss - before) / (abs(before) + EPSILON)
        if change >= self._tau:
            self._run = 0
            return HEALTHY
        self._run += 1
        return Finding(change, self._tau) if self._run >= self._patience else HEALTHY


class RobustLossPlateau(StatefulDetector):
    """The third and the fourth quarter of the run so far have the same mean loss.

    The same means: less than `tau` apart, relative to the third quarter, and less than `z` standard
    errors of their difference. It must hold for `patience` blocks in a row, from `warmup` steps on.
    Once it is flat, it stays so until they are twice `tau` apart. What counts as flat grows with
    the run, as a loss curve flattens by the logarithm of the step. Blocks are of 8 steps at first;
    whenever there are 64, pairs of them are merged, so that memory is constant.
    """

    kind = LOSS_PLATEAU
    _learnt = ("_means", "_length", "_sum", "_count", "_flat", "_change")

    def __init__(
        self, *, tau: float = 0.01, z: float = 2.0, patience: float = 3, warmup: float = 160
    ) -> None:
        require("tau", tau, above=0)
        require("z", z, above=0)
        self._tau = tau
        self._z = z
        self._patience = whole("patience", patience, least=1)
        self._warmup = whole("warmup", warmup, least=64)
        self._forget()

    def _forget(self) -> None:
        self._means: list[float] = []
        self._length = 8
        self._sum = 0.0
        self._count = 0
        self._flat = 0
        self._change = 0.0
        self._verdict: Verdict = WARMING_UP

    def observe(self, signals: StepSignals) -> Verdict:
        loss = signals.loss
        if loss is None or loss - loss != 0.0:
            return self._verdict if type(self._verdict) is Quiet else HEALTHY
        self._sum += loss
        self._count = count = self._count + 1
        if count >= self._length:
            self._close_block()
        return self._verdict

    def _close_block(self) -> None:
        means = self._means
        means.append(self._sum / self._count)
        self._sum, self._count = 0.0, 0
        if len(means) >= _BLOCKS:
            means[:] = [(a + b) / 2.0 for a, b in zip(means[::2], means[1::2], strict=True)]
            self._length *= 2
        self._flat = self._flat + 1 if self._is_flat() else 0
        self._settle()

    def _is_flat(self) -> bool:
        means = self._means
        quarter = len(means) // 4
        if quarter < 2 or len(means) * self._length < self._warmup:
            return False
        before, after = means[-2 * quarter : -quarter], means[-quarter:]
        mean_before, mean_after = sum(before) / quarter, sum(after) / quarter
        change = abs(mean_after - mean_before)
        self._change = change / (abs(mean_before) + EPSILON)
        if self._flat >= self._patience:
            return self._change < _STILL * self._tau
        if self._change >= self._tau:
            return False
        scatter = sum([(x - mean_before) * (x - mean_before) for x in before])
        scatter += sum([(x - mean_after) * (x - mean_after) for x in after])
        return change <= self._z * sqrt(scatter / ((quarter - 1) * quarter))

    def _settle(self) -> None:
        """Set the verdict that holds until the next block is closed."""
        self._length = max(1, self._length)
        if self._flat >= self._patience:
            self._verdict = Finding(self._change, self._tau)
        elif len(self._means) * self._length >= self._warmup:
            self._verdict = HEALTHY
        else:
            self._verdict = WARMING_UP
