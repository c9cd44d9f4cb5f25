# SPDX-License-Identifier: Apache-2.0
"""A step number that goes back, repeats or jumps."""

from __future__ import annotations

from training_exporter.catalog import RESTART
from training_exporter.detectors.base import (
    HEALTHY,
    WARMING_UP,
    Finding,
    StatefulDetector,
    Verdict,
    require,
)
from training_exporter.signals import StepSignals


class Restart(StatefulDetector):
    """A step that is not after the last one, or more than `jump` of the usual strides after it.

    The stride is that of the step before, so that rows written every 500 steps are no jump, nor are
    a few lost ones. The finding is the step against the nearest step that would have been in order.
    """

    kind = RESTART
    _learnt = ("_last", "_stride")

    def __init__(self, *, jump: float = 500) -> None:
        require("jump", jump, above=1)
        self._jump = jump
        self._forget()

    def _forget(self) -> None:
        self._last: int | None = None
        self._stride: int | None = None

    def observe(self, signals: StepSignals) -> Verdict:
        step = signals.step
        last = self._last
        self._last = step
        if last is None:
            return WARMING_UP
        ahead = step - last
        stride = self._stride
        if ahead == stride:
            return HEALTHY
        return self._judge(step, last, stride)

    def _judge(self, step: int, last: int, stride: int | None) -> Verdict:
        """Judge a step at another stride than the one before."""
        ahead = step - last
        if ahead <= 0:
            return Finding(float(step), float(last + 1))
        if stride is not None and ahead > self._jump * stride:
            return Finding(float(step), last + self._jump * stride)
        self._stride = ahead
        return HEALTHY
