# SPDX-License-Identifier: Apache-2.0
"""The allocator's metrics."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from training_exporter import TrainingExporter
from training_exporter.catalog import GPU_METRICS
from training_exporter.collectors.cuda_memory import CudaMemoryCollector
from training_exporter.gpu.readings import AllocatorReading

COMMON = {"run": "night", "rank": "3"}
FULL = AllocatorReading(1, 10.0, 20.0, 30.0, 40.0, 5.0, 80.0, 0.0, 0.0)


def page(*readings: AllocatorReading) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(CudaMemoryCollector(lambda: COMMON, lambda: readings))
    return registry


def samples(registry: CollectorRegistry) -> dict[str, float]:
    return {
        f"{sample.name}:{sample.labels['device']}": sample.value
        for family in registry.collect()
        for sample in family.samples
    }


def test_every_number_has_its_series() -> None:
    """Under its own name, with the counts at 0 from the first reading on."""
    assert samples(page(FULL)) == {
        "training_cuda_memory_allocated_bytes:1": 10.0,
        "training_cuda_memory_allocated_peak_bytes:1": 20.0,
        "training_cuda_memory_reserved_bytes:1": 30.0,
        "training_cuda_memory_reserved_peak_bytes:1": 40.0,
        "training_cuda_memory_inactive_split_bytes:1": 5.0,
        "training_cuda_memory_total_bytes:1": 80.0,
        "training_cuda_alloc_retries_total:1": 0.0,
        "training_cuda_out_of_memory_total:1": 0.0,
    }
    labels = {**COMMON, "device": "1"}
    assert page(FULL).get_sample_value("training_cuda_memory_total_bytes", labels) == 80.0


def test_each_device_has_its_series() -> None:
    """By the number that CUDA gives it."""
    shown = samples(page(FULL, FULL._replace(device=0, allocated_bytes=1.0)))

    assert shown["training_cuda_memory_allocated_bytes:0"] == 1.0
    assert shown["training_cuda_memory_allocated_bytes:1"] == 10.0
    assert len(shown) == 16


def test_absent_is_absent() -> None:
    """No series without CUDA, and none for what an allocator does not count."""
    assert samples(page()) == {}
    assert set(samples(page(AllocatorReading(0, allocated_bytes=7.0)))) == {
        "training_cuda_memory_allocated_bytes:0"
    }


def test_it_describes_its_part_of_the_catalogue() -> None:
    """A registry refuses other collectors of these names."""
    described = {family.name for family in CudaMemoryCollector(lambda: COMMON, tuple).describe()}

    assert described == {
        metric.name.removesuffix("_total")
        for metric in GPU_METRICS
        if metric.name.startswith("training_cuda_")
    }


def test_readings_reach_the_page_of_an_exporter() -> None:
    """The last ones, and none before the first."""
    exporter = TrainingExporter(run="night", rank=3, serve=False)
    labels = {**COMMON, "device": "1"}

    def allocated() -> float | None:
        name = "training_cuda_memory_allocated_bytes"
        return exporter.registry.get_sample_value(name, labels)

    assert (allocated(), exporter.memory) == (None, ())
    for size in (10.0, 11.0):
        exporter.observe_memory((FULL._replace(allocated_bytes=size),))
        assert allocated() == size
    assert exporter.memory == (FULL._replace(allocated_bytes=11.0),)


def test_the_collector_has_a_name() -> None:
    """So that its failures can be told from those of others."""
    exporter = TrainingExporter(run="night", rank=3, serve=False)
    labels = {**COMMON, "collector": "cuda_memory"}
    success = exporter.registry.get_sample_value("training_exporter_collector_success", labels)

    assert success == 1
