# SPDX-License-Identifier: Apache-2.0
"""A loss or gradient norm that is NaN or infinite."""

from __future__ import annotations

from math import inf

from training_exporter.catalog import NON_FINITE
from training_exporter.detectors.base import (
    HEALTHY,
    WARMING_UP,
    Finding,
    StatefulDetector,
    Verdict,
)
from training_exporter.signals import StepSignals


class NonFinite(StatefulDetector):
    """Any step whose loss or gradient norm is NaN or infinite, from the first step on.

    A lone infinite gradient norm is how mixed precision finds its loss scale; it is reported all
    the same, and how long it lasts is for the alert to weigh.
    """

    kind = NON_FINITE

    def observe(self, signals: StepSignals) -> Verdict:
        loss = signals.loss
        norm = signals.grad_norm
        if loss is not None and loss - loss != 0.0:
            return Finding(loss, inf)
        if norm is not None and norm - norm != 0.0:
            return Finding(norm, inf)
        return WARMING_UP if loss is None and norm is None else HEALTHY
