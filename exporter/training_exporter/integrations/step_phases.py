# SPDX-License-Identifier: Apache-2.0
"""Where the time inside the Trainer's steps goes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import nn

from training_exporter.catalog import FORWARD_BACKWARD, OPTIMIZER
from training_exporter.device.phases import open_phases
from training_exporter.timing.phases import EXPORTER, PhaseClock


class ComputeWatcher(Protocol):
    """What takes the seconds of a step by phase."""

    def observe_compute(self, seconds: Mapping[str, float], /) -> object: ...


class StepPhases:
    """The forward and backward pass and the optimiser's part of each step, for one thread.

    On a device without events nothing is known, and nothing happens. What it raises is for the
    caller's error boundary.
    """

    def __init__(self) -> None:
        self._clock: PhaseClock | None = None
        self._device_type = ""

    def start(self, model: object) -> None:
        """A training of `model` begins: forget a step that did not end."""
        if self._clock is not None:
            self._clock.discard()
        first = next(model.parameters(), None) if isinstance(model, nn.Module) else None
        if first is None or first.device.type == self._device_type:
            return
        self._device_type = first.device.type
        try:
            self._clock = open_phases(first.device)
        except TypeError:  # no events: to time anything would be to wait for it
            self._clock = None

    def begin_forward_backward(self) -> None:
        """A batch goes through the model from here."""
        if self._clock is not None:
            self._clock.begin(FORWARD_BACKWARD)

    def end_forward_backward(self) -> None:
        if self._clock is not None:
            self._clock.end(FORWARD_BACKWARD)

    def begin_optimizer(self) -> None:
        """Clipping or the optimiser's step comes next, until the step ends. May be said again."""
        if self._clock is not None:
            self._clock.begin(OPTIMIZER)

    def begin_own(self) -> None:
        """Work of ours comes next, which is not to be counted as the optimiser's."""
        if self._clock is not None:
            self._clock.begin(EXPORTER)

    def end_own(self) -> None:
        if self._clock is not None:
            self._clock.end(EXPORTER)

    def end_step(self, step: int) -> None:
        if self._clock is not None:
            self._clock.lap(step)

    def hand_on(self, watcher: ComputeWatcher, *, wait: bool = False) -> None:
        """Give the watcher the times that have arrived.

        Args:
            wait: wait for all of them, which is for the end of training only.
        """
        if self._clock is not None:
            for _, seconds in self._clock.flush() if wait else self._clock.completed():
                watcher.observe_compute(seconds)
