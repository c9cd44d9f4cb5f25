# SPDX-License-Identifier: Apache-2.0
"""What was read from GPUs, as plain values that are swapped in as one reference.

A field is None, and a mapping has no entry, where the GPU or its driver does not tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple


def _nothing() -> Mapping[str, float]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuReading:
    """One GPU, or one MIG device, at one moment.

    Attributes:
        gpu: index that nvidia-smi shows; of a MIG device that of its GPU and its own, like "0:1".
        uuid, name, driver_version, pci_bus_id: as NVML tells them.
        cuda_device: number by which this process knows it, None when that is not known.
        lost: whether it no longer answers; then nothing is known but what was counted before.
        utilization, memory_utilization: shares of the last sample period, 0 to 1.
        throttled: by reason (catalog.THROTTLE_REASONS), whether clocks are held down for it.
        ecc_errors: since the driver was loaded, by catalog.ECC_ERROR_TYPES.
        remapped_rows, retired_pages: by the errors that caused it (catalog.ECC_ERROR_TYPES).
        xids: errors counted since this process listens, by catalog.XIDS.
        pcie: bytes per second by catalog.DIRECTIONS.
        nvlinks: number of connections by catalog.LINK_STATES.
        nvlink_traffic: bytes by catalog.DIRECTIONS.
    """

    gpu: str
    uuid: str = ""
    name: str = ""
    driver_version: str = ""
    pci_bus_id: str = ""
    cuda_device: int | None = None
    lost: bool = False
    utilization: float | None = None
    memory_utilization: float | None = None
    memory_used_bytes: float | None = None
    memory_free_bytes: float | None = None
    memory_total_bytes: float | None = None
    power_watts: float | None = None
    power_limit_watts: float | None = None
    temperature_celsius: float | None = None
    slowdown_celsius: float | None = None
    sm_clock_hertz: float | None = None
    memory_clock_hertz: float | None = None
    throttled: Mapping[str, float] = field(default_factory=_nothing)
    performance_state: float | None = None
    fan_speed: float | None = None
    energy_joules: float | None = None
    ecc_errors: Mapping[str, float] = field(default_factory=_nothing)
    remapped_rows: Mapping[str, float] = field(default_factory=_nothing)
    row_remap_pending: float | None = None
    row_remap_failed: float | None = None
    retired_pages: Mapping[str, float] = field(default_factory=_nothing)
    xids: Mapping[str, float] = field(default_factory=_nothing)
    pcie: Mapping[str, float] = field(default_factory=_nothing)
    nvlinks: Mapping[str, float] = field(default_factory=_nothing)
    nvlink_traffic: Mapping[str, float] = field(default_factory=_nothing)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuReadings:
    """All GPUs at one moment, and how reading them goes.

    Attributes:
        gpus: the GPUs that could be read; none while the driver stalls.
        timestamp: Unix time in seconds at which the last complete sample began, None before it.
        duration_seconds: time it took.
        stalled: whether calls into the driver do not return in good time; None where no driver is
            asked.
        failures: times that something could not be read, by catalog.GPU_FAILURES.
    """

    gpus: tuple[GpuReading, ...] = ()
    timestamp: float | None = None
    duration_seconds: float | None = None
    stalled: bool | None = None
    failures: Mapping[str, float] = field(default_factory=dict)


class AllocatorReading(NamedTuple):
    """torch's caching allocator on one CUDA device. Bytes, and counts since the run began.

    Attributes:
        device: number by which CUDA knows the device in this process.
        allocated_bytes, allocated_peak_bytes: held by live tensors, now and at most.
        reserved_bytes, reserved_peak_bytes: held by the allocator, now and at most.
        inactive_split_bytes: reserved memory in pieces that cannot be given back.
        total_bytes: memory of the device.
        retries: times that the driver had no memory left, so that the cache was emptied to try
            again; whether that helped or not.
        out_of_memory: times that an OutOfMemoryError was raised.
    """

    device: int
    allocated_bytes: float | None = None
    allocated_peak_bytes: float | None = None
    reserved_bytes: float | None = None
    reserved_peak_bytes: float | None = None
    inactive_split_bytes: float | None = None
    total_bytes: float | None = None
    retries: float | None = None
    out_of_memory: float | None = None
