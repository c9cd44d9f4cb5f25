# SPDX-License-Identifier: Apache-2.0
"""A loss that is far above where it was before the run resumed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from training_exporter.catalog import RESUME_JUMP
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

_BEFORE = 32
_LEAST = 16
"""Losses before the resume, kept and needed."""
_AFTER = 8
"""Losses after it by which it is judged: one wild batch is no jump."""


class TextbookResumeJump(StatefulDetector):
    """The mean of the first 8 losses after a resume over the average before it is above `gamma`.

    That a run resumed is seen by the state that was loaded; without one there is nothing to judge
    by. A ratio to an average that is not positive says nothing.
    """

    kind = RESUME_JUMP
    _learnt = ("_ema",)

    def __init__(self, *, gamma: float = 2.0, beta: float = 0.99) -> None:
        require("gamma", gamma, above=1)
        require("beta", beta, least=0, below=1)
        self._gamma = gamma
        self._beta = beta
        self._forget()

    def _forget(self) -> None:
        self._ema = Ema(self._beta)
        self._after: list[float] | None = None

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._after = None if self._ema.value is None else []

    def observe(self, signals: StepSignals) -> Verdict:
        loss = signals.loss
        level = self._ema.value
        quiet = WARMING_UP if level is None else HEALTHY
        if loss is None or loss - loss != 0.0:
            return quiet
        if self._after is None or level is None:
            self._ema.update(loss)
            return quiet
        # Until it is judged the level stays that of before, so that it is judged against that
        # when the run resumes once more meanwhile.
        self._after.append(loss)
        if len(self._after) < _AFTER:
            return quiet
        after, self._after = self._after, None
        self._ema.update_all(after)
        mean, limit = sum(after) / _AFTER, self._gamma * level
        if level > 0.0 and limit < mean < float("inf"):
            return Finding(mean, limit)
        return quiet


class RobustResumeJump(StatefulDetector):
    """The median of the first 8 losses after a resume is above all of the last 32 before it.

    Above the highest of them, that is, by `noise` times their span and by `rise` times its amount,
    so that a noisy run needs a higher jump than a calm one, and a run that hardly moves does not
    alarm on a trifle. That a run resumed is seen by the state that was loaded; without one there is
    nothing to judge by.
    """

    kind = RESUME_JUMP
    _learnt = ("_before",)

    def __init__(self, *, noise: float = 0.25, rise: float = 0.05) -> None:
        require("noise", noise, least=0)
        require("rise", rise, least=0)
        self._noise = noise
        self._rise = rise
        self._forget()

    def _forget(self) -> None:
        self._before: list[float] = []
        self._after: list[float] | None = None

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._after = [] if len(self._before) >= _LEAST else None

    def observe(self, signals: StepSignals) -> Verdict:
        loss = signals.loss
        before = self._before
        quiet: Quiet = HEALTHY if len(before) >= _LEAST else WARMING_UP
        if loss is None or loss - loss != 0.0:
            return quiet
        if self._after is not None:
            return self._judge(loss, self._after)
        before.append(loss)
        if len(before) > _BEFORE:
            del before[0]
        return quiet

    def _judge(self, loss: float, after: list[float]) -> Verdict:
        # Until then the level stays that of before, in case the run resumes once more meanwhile.
        after.append(loss)
        if len(after) < _AFTER:
            return HEALTHY
        before, self._after = self._before, None
        highest, lowest = max(before), min(before)
        limit = highest + max(self._noise * (highest - lowest), self._rise * abs(highest))
        median = sorted(after)[_AFTER // 2]
        self._before = (before + after)[-_BEFORE:]
        return Finding(median, limit) if median > limit else HEALTHY
