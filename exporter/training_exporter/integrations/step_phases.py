# SPDX-License-Identifier: Apache-2.0
"""Where the time inside the Trainer's steps goes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import nn

from training_exporter.catalog import FORWARD_BACKWARD, OPTIMIZER
from training_exporter.device.phases import open_phases
from training_exporter.timing.phases import EXPORTER, FORWARD, MEETING, PhaseClock


class ComputeWatcher(Protocol):
    """What takes the seconds of a step by phase, those of its forward passes, and how many steps
    have none."""

    def observe_compute(self, seconds: Mapping[str, float], /) -> object: ...

    def observe_forward(self, *, seconds: float) -> object: ...

    def count_dropped(self, steps: int, /, *, phases: int) -> object: ...


class StepPhases:
    """The forward and backward pass and the optimiser's part of each step, for one thread.

    On a device without events nothing is known, and nothing happens. What it raises is for the
    caller's error boundary.
    """

    def __init__(self) -> None:
        self._clock: PhaseClock | None = None
        self._device_type = ""
        self._dropped = 0

    def start(self, model: object) -> None:
        """A training of `model` begins: forget a step that did not end."""
        if self._clock is not None:
            self._clock.discard()
        first = next(model.parameters(), None) if isinstance(model, nn.Module) else None
        if first is None or first.device.type == self._device_type:
            return
        self._device_type, self._dropped = first.device.type, 0
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

    def begin_forward(self) -> None:
        """A forward pass comes next, which is a part of forward and backward."""
        if self._clock is not None:
            self._clock.begin(FORWARD)

    def end_forward(self) -> None:
        if self._clock is not None:
            self._clock.end(FORWARD)

    def begin_meeting(self) -> None:
        """In a forward pass, a wait for other ranks comes next."""
        if self._clock is not None:
            self._clock.begin(MEETING)

    def end_meeting(self) -> None:
        if self._clock is not None:
            self._clock.end(MEETING)

    def begin_optimizer(self) -> None:
        """Clipping or the optimiser's step comes next, until the step ends. May be said again."""
        if self._clock is not None:
            self._clock.begin(OPTIMIZER)

    def begin_own(self, *, on_device: bool) -> None:
        """Work of ours comes next, which is not to be counted as the optimiser's.

        Args:
            on_device: whether the device does it, too. If not, a clock that has marks on the device
                does not see it, and each mark would cost more than such work does.
        """
        if self._clock is not None and (on_device or self._clock.immediate):
            self._clock.begin(EXPORTER)

    def end_own(self) -> None:
        if self._clock is not None:
            self._clock.end(EXPORTER)

    def end_step(self, step: int) -> None:
        if self._clock is not None:
            self._clock.lap(step)

    def hand_on(self, watcher: ComputeWatcher, *, wait: bool = False) -> None:
        """Give the watcher the times that have arrived, and tell it how many steps have none.

        Args:
            wait: wait for all of them, which is for the end of training only.
        """
        if self._clock is None:
            return
        for _, seconds in self._clock.flush() if wait else self._clock.completed():
            forward = seconds.get(FORWARD)
            if forward is not None:
                inner = forward + seconds.get(MEETING, 0.0)
                seconds[FORWARD_BACKWARD] = seconds.get(FORWARD_BACKWARD, 0.0) + inner
                watcher.observe_forward(seconds=forward)
            watcher.observe_compute(seconds)
        dropped = self._clock.dropped - self._dropped
        if dropped:
            self._dropped += dropped
            watcher.count_dropped(0, phases=dropped)
