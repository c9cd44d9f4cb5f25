# SPDX-License-Identifier: Apache-2.0
"""Which of the logged values is which signal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite

from training_exporter.replay.trouble import ReplayError

STEP, TIMESTAMP, EVAL_LOSS = "step", "timestamp", "eval_loss"
JUDGED = ("loss", "grad_norm")
"""Signals of which a row needs one."""

_KNOWN: Mapping[str, tuple[str, ...]] = {
    STEP: (
        "step", "global_step", "train_global_step", "trainer_global_step", "current_steps",
        "iteration", "iter", "steps", "num_updates", "update", "_step",
    ),
    TIMESTAMP: ("timestamp", "_timestamp", "wall_time"),
    "loss": (
        "loss", "train_loss", "training_loss", "train_loss_step", "loss_train", "train_total_loss",
        "total_loss", "lm_loss", "train_lm_loss", "train_batch_loss", "train_loss_epoch",
    ),
    "grad_norm": (
        "grad_norm", "train_grad_norm", "gradient_norm", "train_gradient_norm", "gradnorm",
        "global_grad_norm", "total_grad_norm", "optim_total_grad_norm", "l2_norm_grad_global",
        "grad_2_0_norm_total", "grad_norm_total", "gnorm",
    ),
    "learning_rate": ("learning_rate", "lr", "train_learning_rate", "train_lr"),
    "epoch": ("epoch", "train_epoch"),
    "step_seconds": ("step_seconds", "step_time", "train_step_time", "seconds_per_step"),
    "loss_scale": ("loss_scale", "train_loss_scale"),
    "clip_threshold": ("clip_threshold",),
    "memory_allocated_bytes": ("memory_allocated_bytes",),
}  # fmt: skip
"""By signal the names it goes by, the likeliest first, as `_plain` writes them."""
SIGNALS = (*_KNOWN, EVAL_LOSS)

_EVALUATION = "eval|evaluation|val|valid|validation"
_EVALUATED = re.compile(
    rf"(?:{_EVALUATION})(?:_(?P<dataset>.+))?_loss(?:_epoch)?|loss_(?:{_EVALUATION})|(?P<test>test)_loss"
)
_LONGEST_NAME = 80
_DAMAGED = 0.1
"""Share of the steps that may be none, and it is a step still."""
_OURS = "monitor_"
_OUR_RATE = "learning_rate_0"
"""Names that our own sinks log begin so, and so they call the rate of the first group."""
_RATE_OF_GROUP = re.compile(r"(?:lr|learning_rate)_.+")


class Columns:
    """Knows the values of a log by name; a name that has not been seen is looked at once.

    Args:
        chosen: names by signal, which win over what the names look like.

    Attributes:
        names: name by signal.
        evaluations: data set by the name of its loss.
        seen: names of numbers at the beginning of the log, in that order.
        awaited: chosen names that have not come up so far.
    """

    def __init__(self, chosen: Mapping[str, str]) -> None:
        self.names: dict[str, str] = {}
        self.evaluations: dict[str, str] = {}
        self.seen: dict[str, None] = {}
        self.awaited = dict.fromkeys(chosen.values())
        self._chosen = frozenset(self.awaited)
        self._seen: set[str] = set()
        for signal, name in chosen.items():
            if signal == EVAL_LOSS:
                self.evaluations[name] = "eval"
            else:
                self.names[signal] = name
        self._only = EVAL_LOSS in chosen

    def learn_all(self, records: Iterable[Mapping[str, object]]) -> None:
        """Look at the beginning of a log as a whole, so that of several names the likeliest is
        taken, whichever came first."""
        records = list(records)
        names = dict.fromkeys(name for record in records for name in record)
        for record in records:
            numbers = (name for name in record if name not in self.seen)
            self.seen.update(
                dict.fromkeys(name for name in numbers if number_in(record[name]) is not None)
            )
        plain: dict[str, str] = {}
        for name in sorted(names, key=_is_ours, reverse=True):  # ours have a value at each step
            plain.setdefault(_plain(name), name)
        for signal, known in _KNOWN.items():
            found = [plain[each] for each in known if each in plain]
            if found and signal not in self.names and found[0] not in self._chosen:
                self.names[signal] = found[0]
        for name in names:
            self._learn(name)

    def learn(self, record: Mapping[str, object]) -> None:
        """Take in names that came up later, as those of an evaluation do."""
        if not self._seen.issuperset(record):
            for name in record:
                self._learn(name)

    def _learn(self, name: str) -> None:
        if name in self._seen:
            return
        self._seen.add(name)
        if name in self._chosen:
            self.awaited.pop(name, None)
            return
        plain = _plain(name)
        evaluated = _EVALUATED.fullmatch(plain)
        if evaluated and not self._only:
            dataset = evaluated["dataset"] or evaluated["test"] or "eval"
            if dataset not in self.evaluations.values():  # as val_loss and val_loss_epoch would be
                self.evaluations[name] = dataset
            return
        for signal, known in _KNOWN.items():
            if plain in known and signal not in self.names:
                self.names[signal] = name
                return
        if _RATE_OF_GROUP.fullmatch(plain):
            self.names.setdefault("learning_rate", name)

    def require_chosen(
        self, chosen: Mapping[str, str], records: Iterable[Mapping[str, object]]
    ) -> None:
        """Refuse a name that the user gave and that the beginning of the log does not have.

        Args:
            chosen: names by signal.
            records: the beginning.

        Raises:
            ReplayError: naming those that are there.
        """
        there = dict.fromkeys(name for record in records for name in record)
        for name in chosen.values():
            if name not in there:
                raise ReplayError(f"no value is called {name!r}; there are {_listed(there)}")

    def why_no_step(self, records: Sequence[Mapping[str, object]]) -> str:
        """Why what is taken for the step cannot be one, by the beginning of a log; empty where it
        may be."""
        if STEP not in self.names:
            return ""
        name = self.names[STEP]
        judged = [self.names[signal] for signal in JUDGED if signal in self.names]
        rows = [record for record in records if any(each in record for each in judged)]
        found = [number_in(record[name]) for record in rows if name in record]
        steps = [step for step in found if step is not None and isfinite(step)]
        broken = [step for step in steps if step % 1]
        if len(broken) > _DAMAGED * len(steps):
            return f"it has values such as {broken[0]:g}"
        if len(steps) > 2 and len(set(steps)) == 1:
            return f"it is always {steps[0]:g}"
        return ""

    def require_something(self, records: Iterable[Mapping[str, object]]) -> None:
        """Refuse a log in which nothing can be judged.

        Raises:
            ReplayError: naming what was expected and what is there.
        """
        if "loss" in self.names or "grad_norm" in self.names:
            return
        there = dict.fromkeys(name for record in records for name in record)
        raise ReplayError(
            "no loss and no gradient norm is known by name, such as loss, train/loss or grad_norm;"
            f" there are {_listed(there)}. Say which it is: --map loss=NAME"
        )


def parse_map(texts: Iterable[str]) -> dict[str, str]:
    """Names by signal from texts such as `loss=train/loss,grad_norm=gn`.

    Raises:
        ReplayError: a text that is none, or an unknown signal, naming those that are known.
    """
    chosen: dict[str, str] = {}
    for text in texts:
        for part in re.split(r",(?=\w+=)", text):
            signal, equals, name = part.partition("=")
            if not equals or not name or signal.strip() not in SIGNALS:
                raise ReplayError(
                    f"--map takes SIGNAL=NAME, where SIGNAL is one of {', '.join(SIGNALS)};"
                    f" got {part!r}"
                )
            signal, name = signal.strip(), name.strip()
            if chosen.setdefault(signal, name) != name:
                raise ReplayError(f"--map gives {signal} two names: {chosen[signal]} and {name}")
    return chosen


def number_in(value: object) -> float | None:
    """What a value is as a number, None where it is none."""
    try:
        return None if type(value) is bool else float(value)  # type: ignore[arg-type]
    except (ValueError, TypeError, OverflowError):
        return None


def _is_ours(name: str) -> bool:
    return _in_letters(name).startswith(_OURS)


def _plain(name: str) -> str:
    plain = _in_letters(name).removeprefix(_OURS)
    return "learning_rate" if plain == _OUR_RATE and _is_ours(name) else plain


def _in_letters(name: str) -> str:
    return re.sub(r"[^0-9a-z]", "_", name.strip().lower())


def _listed(names: Iterable[str]) -> str:
    listed = [name if name.isprintable() else ascii(name) for name in names]
    listed = [
        name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}..." for name in listed
    ]
    return ", ".join(listed[:30]) + (", ..." if len(listed) > 30 else "") if listed else "none"
