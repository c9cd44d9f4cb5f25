# SPDX-License-Identifier: Apache-2.0
"""What a Trainer's steps are made of: how much work, where its time goes, what interrupts them."""

from __future__ import annotations

from typing import Any

from training_exporter import catalog
from training_exporter.boundary import StepBoundary
from training_exporter.exporter import TrainingExporter
from training_exporter.integrations.effort import Effort, peak_of
from training_exporter.integrations.forward_passes import ForwardPasses
from training_exporter.integrations.step_phases import StepPhases
from training_exporter.integrations.trainer_settings import schedules_of


class _OwnPart:
    """A class, since a generator would cost several times as much, and this runs on each step."""

    __slots__ = ("_boundary", "_on_device", "_phases")

    def __init__(self, boundary: StepBoundary, phases: StepPhases, *, on_device: bool) -> None:
        self._boundary = boundary
        self._phases = phases
        self._on_device = on_device

    def __enter__(self) -> None:
        with self._boundary.at(catalog.STEP_ERROR):
            self._phases.begin_optimizer()
            self._phases.begin_own(on_device=self._on_device)

    def __exit__(self, *_: object) -> None:
        with self._boundary.at(catalog.STEP_ERROR):
            self._phases.end_own()


class StepWork:
    """Tells the exporter. But for `count`, it raises nothing: it has its own boundary, because a
    step of which this is unknown is still a step. For the training thread."""

    def __init__(self, exporter: TrainingExporter) -> None:
        self._exporter = exporter
        self._effort = Effort()
        self._phases = StepPhases()
        self._own_parts = [
            _OwnPart(exporter.boundary, self._phases, on_device=busy) for busy in (False, True)
        ]
        self.forward = ForwardPasses(exporter, self._phases)

    def measure(self, model: object, args: Any) -> None:
        """Look at a model, best before it is wrapped."""
        with self._exporter.boundary.at(catalog.LIFECYCLE_ERROR):
            self._effort.measure(model)
            self._exporter.set_peak_flops(peak_of(model, args))

    def start(self, model: object, args: Any, state: Any) -> None:
        """A training begins; a step before it that did not end is forgotten."""
        with self._exporter.boundary.at(catalog.LIFECYCLE_ERROR):
            self._exporter.ended_step = state.global_step
            self._effort.discard()
            self._phases.start(model)
            self.forward.start()
            self._exporter.monitor.plan(schedules_of(args, state))

    def count(self, inputs: Any) -> Any | None:
        """Count a batch, and return its tokens as `tokens_in` has them. May raise."""
        return self._effort.add(inputs)

    def batch_begins(self) -> None:
        with self._exporter.boundary.at(catalog.STEP_ERROR):
            self._phases.begin_forward_backward()

    def batch_ends(self) -> None:
        with self._exporter.boundary.at(catalog.STEP_ERROR):
            self._phases.end_forward_backward()

    def own_part_of_optimizer(self, *, on_device: bool) -> _OwnPart:
        """Around work of our own next to the optimiser's, not to be counted as his.

        Args:
            on_device: whether it keeps the device busy; a number or two do not.
        """
        return self._own_parts[on_device]

    def step_ends(self, step: int) -> dict[str, float | None]:
        """Returns StepSignals fields."""
        self._exporter.ended_step = step
        with self._exporter.boundary.at(catalog.STEP_ERROR):
            self._phases.end_step(step)
            self.forward.step_ends()
            self._phases.hand_on(self._exporter)
        return self._effort.take()

    def finish(self, error: BaseException | None) -> None:
        """The end of a training. After an error the device may hang, and is not waited for."""
        with self._exporter.boundary.at(catalog.LIFECYCLE_ERROR):
            self._phases.hand_on(self._exporter, wait=error is None)
