# SPDX-License-Identifier: Apache-2.0
"""What of a step's phases reaches the exporter."""

from __future__ import annotations

import pytest

from tests.unit.device.test_phases import LateTimedDevice
from training_exporter import TrainingExporter
from training_exporter.integrations.step_phases import StepPhases
from training_exporter.timing.phases import PhaseClock


def test_steps_without_times_are_on_the_page() -> None:
    """Each counted once, beside those that have times."""
    exporter, device, phases = TrainingExporter(serve=False), LateTimedDevice(), StepPhases()
    phases._clock = device.clock(events=4)
    for step in range(1, 5):
        phases.begin_forward_backward()
        device.work(1.0)
        phases.end_forward_backward()
        phases.end_step(step)
        phases.hand_on(exporter)
    phases.hand_on(exporter, wait=True)

    labels = exporter.status.labels
    dropped = exporter.registry.get_sample_value("training_exporter_dropped_phases_total", labels)
    assert dropped == 2
    assert exporter.status.compute["forward_backward"] == 2.0


@pytest.mark.parametrize("on_device", [False, True])
def test_our_part_is_marked_where_the_device_does_it(on_device: bool) -> None:
    """A mark costs more than what the host does next to the optimiser's step."""
    exporter, device, phases = TrainingExporter(serve=False), LateTimedDevice(), StepPhases()
    phases._clock = device.clock()
    phases.begin_optimizer()
    device.work(1.0)
    phases.begin_own(on_device=on_device)
    device.work(0.5)
    phases.end_own()
    phases.end_step(1)
    phases.hand_on(exporter, wait=True)

    assert device.recorded == (4 if on_device else 2)
    assert exporter.status.compute["optimizer"] == (1.0 if on_device else 1.5)


def test_where_the_host_is_the_device_our_part_is_always_marked() -> None:
    """Its time is the step's."""
    phases = StepPhases()
    phases._clock = clock = PhaseClock()
    phases.begin_own(on_device=False)
    phases.end_own()
    clock.lap(1)

    assert list(clock.completed()[0].seconds) == ["exporter"]
