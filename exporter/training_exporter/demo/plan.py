# SPDX-License-Identifier: Apache-2.0
"""What a demo run is to do. Without torch, so that a typing error is told before torch loads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, NamedTuple

EXPLOSION: Final = "explosion"
NAN: Final = "nan"
PLATEAU: Final = "plateau"
SLOW_DATA: Final = "slow-data"
STALL: Final = "stall"
CRASH: Final = "crash"
FAULTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        NAN: "a division by zero in the forward pass of a batch",
        PLATEAU: "learning rate 0 for a long stretch",
        EXPLOSION: "learning rate x1000 for a few steps",
        SLOW_DATA: "reading the data takes far longer for a while",
        STALL: "one step hangs: no anomaly, but after a minute an alert",
        CRASH: "a token that the model does not know",
    }
)


MAX_FAKE_GPUS: Final = 16


class DemoError(Exception):
    """The demo cannot begin; the message is for the user."""


class Fault(NamedTuple):
    """A fault to cause, and the first step it affects."""

    kind: str
    step: int

    def __str__(self) -> str:
        return f"{self.kind}@{self.step}"


DEFAULT_FAULTS: Final = (
    Fault(NAN, 40),
    Fault(PLATEAU, 80),
    Fault(EXPLOSION, 350),
    Fault(SLOW_DATA, 430),
)
"""The plateau comes early because flat means flat for half of the run so far, and before the
explosion, whose losses would hide it."""


@dataclass(frozen=True, kw_only=True)
class DemoPlan:
    """Everything a user can choose about a demo run.

    Attributes:
        steps: optimiser steps to train for.
        seed: of the weights, the choice of the text and its order.
        faults: the faults to cause.
        left_out: faults that would have been caused, had the run not ended before.
        run: name of the run, None leaves it to the environment and else to "demo".
        port: port to serve on, None leaves it to the environment and else to the default.
        eval_every: steps between evaluations, 0 for none.
        linger: seconds to go on serving after the end, infinity is until Ctrl-C.
        fake_gpus: GPUs without hardware to show, 0 for those that the machine has.
    """

    steps: int
    seed: int = 0
    faults: tuple[Fault, ...] = DEFAULT_FAULTS
    left_out: tuple[Fault, ...] = ()
    run: str | None = None
    port: int | None = None
    eval_every: int = 100
    linger: float = 0.0
    fake_gpus: int = 0


def parse_fault(text: str) -> Fault:
    """Read `KIND@STEP`.

    Raises:
        ValueError: an unknown kind or a step that is none; the message names what is valid.
    """
    kind, _, step = text.partition("@")
    if kind not in FAULTS:
        raise ValueError(f"{text!r} names no fault: write KIND@STEP, KIND one of {_names()}")
    # isdecimal alone would let digits of other scripts through, which is harmless: int reads them.
    if not step.isdecimal() or int(step) < 1:
        raise ValueError(f"{text!r} names no step: write {kind}@STEP, STEP a number from 1 on")
    return Fault(kind, int(step))


def parse_faults(texts: Iterable[str], *, steps: int) -> tuple[Fault, ...]:
    """Read several faults of a run of so many steps, and put them in order.

    Raises:
        ValueError: as for `parse_fault`, or a fault that would come after the end.
    """
    faults = sorted(map(parse_fault, texts), key=lambda fault: fault.step)
    for fault in faults:
        if fault.step > steps:
            raise ValueError(f"{fault} comes after the last step, which is {steps}")
    return tuple(faults)


def default_faults(steps: int) -> tuple[tuple[Fault, ...], tuple[Fault, ...]]:
    """The default faults that a run of so many steps reaches, and those that it does not."""
    reached = tuple(fault for fault in DEFAULT_FAULTS if fault.step <= steps)
    return reached, DEFAULT_FAULTS[len(reached) :]


def _names() -> str:
    return ", ".join(FAULTS)
