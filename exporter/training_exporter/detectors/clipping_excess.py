# SPDX-License-Identifier: Apache-2.0
"""Gradients that are clipped on most steps."""

from __future__ import annotations

from training_exporter.catalog import CLIPPING_EXCESS
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

_BLOCKS = 5


class ClippingExcess(StatefulDetector):
    """More than `share` of the last `window` steps had a gradient norm above the clip threshold.

    Counted in five blocks, of which two are enough to judge. Steps without a clip threshold or
    without a finite norm are no steps here.
    """

    kind = CLIPPING_EXCESS
    _learnt = ("_seen", "_clipped", "_counts")

    def __init__(self, *, share: float = 0.5, window: float = 200) -> None:
        require("share", share, above=0, below=1)
        self._share = share
        self._block = whole("window", window, least=10) // _BLOCKS
        self._forget()

    def _forget(self) -> None:
        self._seen = 0
        self._clipped = 0
        self._counts: list[int] = []
        self._settle()

    def observe(self, signals: StepSignals) -> Verdict:
        norm = signals.grad_norm
        threshold = signals.clip_threshold
        if norm is None or threshold is None or norm - norm != 0.0:
            return self._quiet
        if norm > threshold:
            self._clipped += 1
        self._seen = seen = self._seen + 1
        if seen >= self._block:
            self._close_block()
        return self._verdict

    def _close_block(self) -> None:
        self._counts.append(self._clipped)
        del self._counts[:-_BLOCKS]
        self._seen = self._clipped = 0
        self._settle()

    def _settle(self) -> None:
        """Set the verdict that holds until the next block is closed."""
        counts = self._counts
        self._quiet: Quiet = HEALTHY if len(counts) > 1 else WARMING_UP
        self._verdict: Verdict = self._quiet
        if len(counts) > 1:
            share = sum(counts) / (len(counts) * self._block)
            if share > self._share:
                self._verdict = Finding(share, self._share)
