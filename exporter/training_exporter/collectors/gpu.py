# SPDX-License-Identifier: Apache-2.0
"""Renders what the driver of the GPUs said last."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from prometheus_client import Metric as Family
from prometheus_client.registry import Collector

from training_exporter import catalog
from training_exporter.collectors.families import Families, empty_family
from training_exporter.gpu.readings import GpuReading, GpuReadings

NUMBERS: Final = (
    (catalog.GPU_UTILIZATION, "utilization"),
    (catalog.GPU_MEMORY_UTILIZATION, "memory_utilization"),
    (catalog.GPU_MEMORY_USED, "memory_used_bytes"),
    (catalog.GPU_MEMORY_FREE, "memory_free_bytes"),
    (catalog.GPU_MEMORY_TOTAL, "memory_total_bytes"),
    (catalog.GPU_POWER, "power_watts"),
    (catalog.GPU_POWER_LIMIT, "power_limit_watts"),
    (catalog.GPU_TEMPERATURE, "temperature_celsius"),
    (catalog.GPU_SLOWDOWN_TEMPERATURE, "slowdown_celsius"),
    (catalog.GPU_SM_CLOCK, "sm_clock_hertz"),
    (catalog.GPU_MEMORY_CLOCK, "memory_clock_hertz"),
    (catalog.GPU_PERFORMANCE_STATE, "performance_state"),
    (catalog.GPU_FAN_SPEED, "fan_speed"),
    (catalog.GPU_ENERGY, "energy_joules"),
    (catalog.GPU_ROW_REMAP_PENDING, "row_remap_pending"),
    (catalog.GPU_ROW_REMAP_FAILED, "row_remap_failed"),
)
"""Metrics of one number for each GPU, and the field of GpuReading that has it."""

MAPPINGS: Final = (
    (catalog.GPU_THROTTLED, "throttled"),
    (catalog.GPU_ECC_ERRORS, "ecc_errors"),
    (catalog.GPU_REMAPPED_ROWS, "remapped_rows"),
    (catalog.GPU_RETIRED_PAGES, "retired_pages"),
    (catalog.GPU_XID_ERRORS, "xids"),
    (catalog.GPU_PCIE_THROUGHPUT, "pcie"),
    (catalog.GPU_NVLINKS, "nvlinks"),
    (catalog.GPU_NVLINK_TRAFFIC, "nvlink_traffic"),
)
"""Metrics with a label beside `gpu`, and the field of GpuReading that has a number for each."""

ABOUT_READING: Final = (
    catalog.GPU_INFO,
    catalog.GPU_FAILURES_TOTAL,
    catalog.GPU_DRIVER_STALLED,
    catalog.GPU_LAST_SAMPLE_TIMESTAMP,
    catalog.GPU_SAMPLE_DURATION,
)


class GpuCollector(Collector):
    """Metrics of GPUs. Asks no driver: it renders readings that a thread of its own has made.

    Args:
        labels: returns the common labels.
        readings: returns what is known at the moment.
    """

    def __init__(
        self, labels: Callable[[], Mapping[str, str]], readings: Callable[[], GpuReadings]
    ) -> None:
        self._labels = labels
        self._readings = readings

    def describe(self) -> Iterator[Family]:
        described = [*ABOUT_READING, *(metric for metric, _ in (*NUMBERS, *MAPPINGS))]
        return map(empty_family, described)

    def collect(self) -> Iterator[Family]:
        build, readings = Families(self._labels()), self._readings()
        yield from _gpus(build, readings.gpus)
        yield from build.by_label(catalog.GPU_FAILURES_TOTAL, readings.failures)
        if readings.stalled is not None:
            yield from build.one(catalog.GPU_DRIVER_STALLED, float(readings.stalled))
        yield from build.one(catalog.GPU_LAST_SAMPLE_TIMESTAMP, readings.timestamp)
        yield from build.one(catalog.GPU_SAMPLE_DURATION, readings.duration_seconds)


def _gpus(build: Families, gpus: Sequence[GpuReading]) -> Iterator[Family]:
    infos = [(_info(gpu), None if gpu.lost else 1.0) for gpu in gpus]
    yield from build.several(catalog.GPU_INFO, infos)
    for metric, field in NUMBERS:
        yield from build.by_label(metric, {gpu.gpu: getattr(gpu, field) for gpu in gpus})
    for metric, field in MAPPINGS:
        rows = [
            ((gpu.gpu, key), value) for gpu in gpus for key, value in getattr(gpu, field).items()
        ]
        yield from build.several(metric, rows)


def _info(gpu: GpuReading) -> tuple[str, ...]:
    cuda_device = "" if gpu.cuda_device is None else str(gpu.cuda_device)
    return gpu.gpu, gpu.uuid, gpu.name, gpu.driver_version, gpu.pci_bus_id, cuda_device
