# SPDX-License-Identifier: Apache-2.0
"""What a detector is, and the few lines that all of them share."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from math import isfinite
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

from training_exporter.signals import Evaluation, StepSignals
from training_exporter.smoothing import Ema


class Quiet(Enum):
    """Why a detector has nothing to say."""

    WARMING_UP = "it has not seen enough of what it judges by"
    HEALTHY = "it has, and all is well"


WARMING_UP = Quiet.WARMING_UP
HEALTHY = Quiet.HEALTHY


class Finding(NamedTuple):
    """A step that is anomalous, with the two numbers that say so."""

    value: float
    threshold: float


Verdict: TypeAlias = Quiet | Finding


@runtime_checkable
class Detector(Protocol):
    """Judges one kind of anomaly, one step at a time, from the signals alone.

    A detector has no clock and no torch, does no I/O, and costs a fraction of a microsecond on a
    healthy step. It must return the very constants WARMING_UP and HEALTHY, which the monitor
    compares by identity. A step on which the judged signal is None or non-finite leaves its state
    alone (only `non_finite` judges those).
    """

    kind: str

    def observe(self, signals: StepSignals) -> Verdict: ...

    def state_dict(self) -> dict[str, Any]:
        """Everything it has learnt, as values that JSON can hold."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave; keys that are missing start afresh, unknown ones are
        ignored. An empty mapping therefore resets the detector."""
        ...


@runtime_checkable
class EvaluationDetector(Detector, Protocol):
    """A detector that also judges evaluations."""

    def observe_evaluation(self, evaluation: Evaluation) -> Verdict: ...


class StatefulDetector:
    """`state_dict` and `load_state_dict` for detectors that name their state.

    A subclass lists the attributes it learns in `_learnt`, sets them all in `_forget`, and derives
    from them in `_settle` what it keeps at hand beside them. An attribute is a number, a bool,
    None, a list of numbers or an Ema.
    """

    _learnt: tuple[str, ...] = ()

    def _forget(self) -> None:
        """Set every learnt attribute to what it is before the first step."""

    def _settle(self) -> None:
        """Set what follows from the learnt attributes."""

    def state_dict(self) -> dict[str, Any]:
        return {name.lstrip("_"): _exported(getattr(self, name)) for name in self._learnt}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._forget()
        for name in self._learnt:
            saved = state.get(name.lstrip("_"))
            if saved is None:
                continue
            current = getattr(self, name)
            if isinstance(current, Ema):
                current.load_state_dict(saved)
            else:
                setattr(self, name, list(saved) if isinstance(saved, list) else saved)
        self._settle()


def _exported(value: Any) -> Any:
    if isinstance(value, Ema):
        return value.state_dict()
    return list(value) if isinstance(value, list) else value


def require(
    name: str,
    value: float,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
) -> None:
    """Refuse a threshold outside its range.

    Raises:
        ValueError: naming the option, its valid range and what was given.
    """
    fits = (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and isfinite(value)
        and (above is None or value > above)
        and (least is None or value >= least)
        and (below is None or value < below)
        and (most is None or value <= most)
    )
    if not fits:
        bounds = (("above", above), ("at least", least), ("below", below), ("at most", most))
        wanted = " and ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)
        raise ValueError(f"{name} must be a number {wanted}, got {value!r}".replace("  ", " "))
