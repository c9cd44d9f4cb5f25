# SPDX-License-Identifier: Apache-2.0
"""GPUs as users of TrainingExporter meet them."""

from __future__ import annotations

import gc
import sys
import weakref

import pytest
from prometheus_client import CollectorRegistry

from tests.unit.gpu.test_devices import Cuda, torch_with
from tests.unit.gpu.test_sampler import threads, wait_until
from training_exporter import TrainingExporter
from training_exporter.demo.stand_in_nvml import Control
from training_exporter.gpu.readings import AllocatorReading, GpuReadings
from training_exporter.web.gpus import gpu_section

RUN = {"run": "training", "rank": "0"}


def test_they_are_read_from_start_to_close(nvml: Control) -> None:
    """With the port closed too: whoever keeps it closed has the registry."""
    exporter = TrainingExporter(serve=False, gpus="all", gpu_interval=0.5)
    assert exporter.gpu_readings == GpuReadings()
    assert not threads()

    exporter.start()
    wait_until(lambda: exporter.gpu_readings.gpus)
    labels = {**RUN, "gpu": "1"}
    shown = exporter.registry.get_sample_value("training_gpu_power_watts", labels)
    exporter.close()

    assert shown == 200.0
    assert exporter.gpu_readings == GpuReadings()
    assert exporter.registry.get_sample_value("training_gpu_power_watts", labels) is None
    assert not threads()


def test_their_cost_is_counted(nvml: Control) -> None:
    """Beside that of the step and the page."""
    exporter = TrainingExporter(serve=False, gpus="all").start()
    wait_until(lambda: exporter.health.overhead_seconds["gpu"] > 0)
    exporter.close()

    phase = {**RUN, "phase": "gpu"}
    cost = exporter.registry.get_sample_value("training_exporter_overhead_seconds_total", phase)
    assert cost
    assert 0 < cost < 1


def test_off_means_off(nvml: Control) -> None:
    """No thread, and no call."""
    exporter = TrainingExporter(serve=False, gpus="all", gpu_metrics=False).start()

    assert not threads()
    assert nvml.calls("nvmlInitWithFlags") == 0
    exporter.close()


def test_none_is_watched_while_it_is_not_known_which(nvml: Control) -> None:
    """By default; the machine's others belong to somebody else."""
    exporter = TrainingExporter(serve=False, gpu_interval=0.5).start()
    wait_until(lambda: exporter.gpu_readings.failures)
    wait_until(lambda: exporter.health.gpu_seconds)
    readings = exporter.gpu_readings
    exporter.close()

    assert readings.gpus == ()
    assert readings.stalled is False


def test_devices_in_use_come_from_the_training_thread(
    nvml: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that sees all GPUs shows the one on which its allocator holds memory."""
    cuda = Cuda(uuid=nvml.gpu(1).uuid.decode())
    monkeypatch.setitem(sys.modules, "torch", torch_with(cuda))
    exporter = TrainingExporter(serve=False, gpu_interval=0.5).start()
    exporter.observe_memory((AllocatorReading(3),))
    wait_until(lambda: exporter.gpu_readings.gpus)
    readings = exporter.gpu_readings
    exporter.close()

    assert [(gpu.gpu, gpu.cuda_device) for gpu in readings.gpus] == [("1", 3)]


def test_a_process_without_cuda_has_numbers_for_no_gpu(
    nvml: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It watches them, as the demo on a laptop does, and calls none of them cuda:0."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    exporter = TrainingExporter(serve=False, gpus="all", gpu_interval=0.5).start()
    wait_until(lambda: exporter.gpu_readings.gpus)
    readings = exporter.gpu_readings
    exporter.close()

    assert [gpu.cuda_device for gpu in readings.gpus] == [None, None]
    page = gpu_section(readings, (), readings.timestamp or 0.0)
    assert "GPU 1" in page
    assert "cuda" not in page


def test_a_dropped_exporter_takes_its_sampler_along(nvml: Control) -> None:
    """Even while a user's registry still has the collectors."""
    registry = CollectorRegistry()
    exporter = TrainingExporter(serve=False, gpus="all", registry=registry).start()
    source, reference = exporter._board.gpus, weakref.ref(exporter)
    wait_until(lambda: source().gpus)
    del exporter
    gc.collect()

    assert reference() is None
    wait_until(lambda: not threads())
    labels = {**RUN, "gpu": "0"}
    assert registry.get_sample_value("training_gpu_power_watts", labels) is None
