# SPDX-License-Identifier: Apache-2.0
"""Renders what torch's allocator counted at the last step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from prometheus_client import Metric as Family
from prometheus_client.registry import Collector

from training_exporter import catalog
from training_exporter.collectors.families import Families, empty_family
from training_exporter.gpu.readings import AllocatorReading

COLUMNS: Final = (
    (catalog.CUDA_ALLOCATED, "allocated_bytes"),
    (catalog.CUDA_ALLOCATED_PEAK, "allocated_peak_bytes"),
    (catalog.CUDA_RESERVED, "reserved_bytes"),
    (catalog.CUDA_RESERVED_PEAK, "reserved_peak_bytes"),
    (catalog.CUDA_INACTIVE_SPLIT, "inactive_split_bytes"),
    (catalog.CUDA_TOTAL, "total_bytes"),
    (catalog.CUDA_ALLOC_RETRIES, "retries"),
    (catalog.CUDA_OUT_OF_MEMORY, "out_of_memory"),
)


class CudaMemoryCollector(Collector):
    """Metrics of torch's allocator. Asks it nothing: it reads one reference (device/memory.py says
    why). Without a CUDA device in use there are none.

    Args:
        labels: returns the common labels.
        readings: returns the last readings.
    """

    def __init__(
        self,
        labels: Callable[[], Mapping[str, str]],
        readings: Callable[[], tuple[AllocatorReading, ...]],
    ) -> None:
        self._labels = labels
        self._readings = readings

    def describe(self) -> Iterator[Family]:
        return (empty_family(metric) for metric, _ in COLUMNS)

    def collect(self) -> Iterator[Family]:
        build, readings = Families(self._labels()), self._readings()
        for metric, field in COLUMNS:
            values = {str(reading.device): getattr(reading, field) for reading in readings}
            yield from build.by_label(metric, values)
