# SPDX-License-Identifier: Apache-2.0
"""An average of finite values, with state that survives a restart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import isfinite
from typing import Any


class Ema:
    """Exponential moving average, corrected for its start at zero.

    ``EMA_t = beta EMA_(t-1) + (1 - beta) x_t``, divided by ``1 - beta^t`` (Kingma and Ba, "Adam",
    section 3). Non-finite values are ignored: one of them would blind the average for good.
    """

    __slots__ = ("_gain", "_sum", "_weight", "value")

    def __init__(self, beta: float) -> None:
        if not 0 <= beta < 1:
            raise ValueError(f"beta must be at least 0 and below 1, got {beta!r}")
        self._gain = 1.0 - beta
        self.reset()

    def reset(self) -> None:
        self._sum = 0.0
        self._weight = 0.0
        self.value: float | None = None

    def update(self, x: float) -> None:
        if x - x != 0.0:  # NaN or infinite, at a third of the cost of isfinite()
            return
        gain = self._gain
        self._sum = total = self._sum + gain * (x - self._sum)
        self._weight = weight = self._weight + gain * (1.0 - self._weight)
        self.value = total / weight

    def update_all(self, values: Iterable[float]) -> None:
        """Take in finite values, oldest first; what `update` does, without its check and call."""
        gain, total, weight = self._gain, self._sum, self._weight
        for x in values:
            total += gain * (x - total)
            weight += gain * (1.0 - weight)
        if weight:
            self._sum, self._weight, self.value = total, weight, total / weight

    def copy(self) -> Ema:
        """Another average of the same values."""
        other = Ema.__new__(Ema)
        other._gain, other._sum = self._gain, self._sum
        other._weight, other.value = self._weight, self.value
        return other

    def state_dict(self) -> dict[str, float]:
        return {"sum": self._sum, "weight": self._weight}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved average; anything missing or unusable starts afresh."""
        self.reset()
        total, weight = state.get("sum", 0.0), state.get("weight", 0.0)
        if isfinite(total) and isfinite(weight) and 0 < weight <= 1:
            self._sum, self._weight, self.value = total, weight, total / weight
