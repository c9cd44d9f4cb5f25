# SPDX-License-Identifier: Apache-2.0
"""A learning rate that has left its schedule."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Any

from training_exporter.catalog import LEARNING_RATE_ANOMALY
from training_exporter.detectors.base import (
    HEALTHY,
    WARMING_UP,
    Finding,
    StatefulDetector,
    Verdict,
    require,
)
from training_exporter.detectors.blocks import whole
from training_exporter.signals import StepSignals

_HEADROOM = 1.25
"""How far a rate may rise until its highest value is noted anew."""
_GROUPS_PER_STEP = 4
_ADOPT_AFTER = 100
"""Steps after which a rate that stays high is taken for meant."""
MAX_GROUPS = 1024


class LearningRateAnomaly(StatefulDetector):
    """A rate that is NaN, infinite, negative, far above all before it, or 0 for long.

    Far above: more than `jump` times the highest rate of its parameter group so far, which no
    warm-up, warm restart or cycle is; steps down, however deep, are schedules. At 0 for long: the
    rates of all groups are 0 for `stuck` steps in a row and the planned end is not reached. With
    many groups each is looked at every few steps only.
    """

    kind = LEARNING_RATE_ANOMALY

    def __init__(self, *, jump: float = 10.0, stuck: float = 20) -> None:
        require("jump", jump, above=_HEADROOM)
        self._jump = jump
        self._stuck = whole("stuck", stuck, least=1)
        self._forget()

    def _forget(self) -> None:
        self._highest: dict[str, float] = {}
        self._limits: dict[str, float] = {}
        self._zeros = 0
        self._high_steps = 0
        self._rest = 0

    def state_dict(self) -> dict[str, Any]:
        return {
            "highest": dict(self._highest),
            "zeros": self._zeros,
            "high_steps": self._high_steps,
            "rest": self._rest,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._forget()
        for name, rate in state.get("highest", {}).items():
            self._raise_limit(name, rate)
        self._zeros = state.get("zeros", 0)
        self._high_steps = state.get("high_steps", 0)
        self._rest = state.get("rest", 0)

    def observe(self, signals: StepSignals) -> Verdict:
        if self._rest:
            self._rest -= 1
            return HEALTHY
        rates = signals.learning_rates
        limits = self._limits
        try:
            for name, rate in rates.items():
                if not 0.0 < rate <= limits[name]:
                    return self._judge(signals)
        except KeyError:
            return self._judge(signals)
        if self._zeros or self._high_steps:
            self._zeros = self._high_steps = 0
        if 0 < len(rates) <= _GROUPS_PER_STEP:
            return HEALTHY
        self._rest = len(rates) // _GROUPS_PER_STEP
        return HEALTHY if limits else WARMING_UP

    def _judge(self, signals: StepSignals) -> Verdict:
        """Judge rates of which at least one is unknown, zero, or outside its limits."""
        rates = signals.learning_rates
        ready = bool(self._highest)
        for rate in rates.values():
            if not 0.0 <= rate < inf:
                return Finding(rate, 0.0 if rate != inf else self._jump)
        for name, rate in rates.items():
            if rate > self._limits.get(name, 0.0):
                highest = self._highest.get(name, 0.0)
                if 0.0 < self._jump * highest < rate and self._high_steps < _ADOPT_AFTER:
                    self._high_steps += 1
                    return Finding(rate, self._jump * highest)
                self._raise_limit(name, rate)
        self._high_steps = 0
        return self._judge_zeros(signals, HEALTHY if ready else WARMING_UP)

    def _judge_zeros(self, signals: StepSignals, quiet: Verdict) -> Verdict:
        if max(signals.learning_rates.values()) > 0.0:
            self._zeros = 0
            return quiet
        self._zeros += 1
        at_end = signals.max_steps is not None and signals.step >= signals.max_steps
        return quiet if self._zeros < self._stuck or at_end else Finding(0.0, 0.0)

    def _raise_limit(self, name: str, rate: float) -> None:
        if len(self._highest) < MAX_GROUPS or name in self._highest:
            self._highest[name] = rate
            self._limits[name] = rate * _HEADROOM
