# SPDX-License-Identifier: Apache-2.0
"""What of a step's phases reaches the exporter."""

from __future__ import annotations

from tests.unit.device.test_phases import LateTimedDevice
from training_exporter import TrainingExporter
from training_exporter.integrations.step_phases import StepPhases


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
