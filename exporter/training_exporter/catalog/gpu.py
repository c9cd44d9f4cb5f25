# SPDX-License-Identifier: Apache-2.0
"""Metrics of GPUs: what the driver says (`training_gpu_*`) and what torch's allocator says
(`training_cuda_*`)."""

from __future__ import annotations

from training_exporter.catalog.labels import (
    DIRECTIONS,
    ECC_ERROR_TYPES,
    GPU_FAILURES,
    LINK_STATES,
    THROTTLE_REASONS,
    XIDS,
)
from training_exporter.catalog.metric import Metric

# What NVML says. The label `gpu` is the index that nvidia-smi shows; of a MIG device, the index of
# its GPU and its own, such as "0:1".
_GPU = "GPUs, as the driver sees them"
_OF_GPU = ("gpu",)
GPU_INFO = Metric(
    "training_gpu_info",
    "gauge",
    "1, with what does not change about a GPU on its labels; cuda_device is the number by which "
    "this process knows it.",
    ("gpu", "uuid", "name", "driver_version", "pci_bus_id", "cuda_device"),
    section=_GPU,
)
GPU_UTILIZATION = Metric(
    "training_gpu_utilization_ratio",
    "gauge",
    "Share of the driver's last sample period in which at least one kernel ran.",
    _OF_GPU,
    section=_GPU,
)
GPU_MEMORY_UTILIZATION = Metric(
    "training_gpu_memory_utilization_ratio",
    "gauge",
    "Share of the driver's last sample period in which memory was read or written.",
    _OF_GPU,
    section=_GPU,
)
GPU_MEMORY_USED = Metric(
    "training_gpu_memory_used_bytes",
    "gauge",
    "Memory in use by all processes together, contexts and caches included.",
    _OF_GPU,
    section=_GPU,
)
GPU_MEMORY_FREE = Metric(
    "training_gpu_memory_free_bytes", "gauge", "Memory not in use.", _OF_GPU, section=_GPU
)
GPU_MEMORY_TOTAL = Metric(
    "training_gpu_memory_total_bytes", "gauge", "Memory that there is.", _OF_GPU, section=_GPU
)
GPU_POWER = Metric(
    "training_gpu_power_watts", "gauge", "Power drawn by the board.", _OF_GPU, section=_GPU
)
GPU_POWER_LIMIT = Metric(
    "training_gpu_power_limit_watts",
    "gauge",
    "Power limit that is enforced.",
    _OF_GPU,
    section=_GPU,
)
GPU_TEMPERATURE = Metric(
    "training_gpu_temperature_celsius", "gauge", "Temperature of the chip.", _OF_GPU, section=_GPU
)
GPU_SLOWDOWN_TEMPERATURE = Metric(
    "training_gpu_slowdown_temperature_celsius",
    "gauge",
    "Temperature at which the hardware slows itself down.",
    _OF_GPU,
    section=_GPU,
)
GPU_SM_CLOCK = Metric(
    "training_gpu_sm_clock_hertz",
    "gauge",
    "Clock of the streaming multiprocessors.",
    _OF_GPU,
    section=_GPU,
)
GPU_MEMORY_CLOCK = Metric(
    "training_gpu_memory_clock_hertz", "gauge", "Clock of the memory.", _OF_GPU, section=_GPU
)
GPU_THROTTLED = Metric(
    "training_gpu_throttled",
    "gauge",
    "1 while clocks are held down for the reason, 0 while they are not.",
    ("gpu", "reason"),
    {"reason": THROTTLE_REASONS},
    _GPU,
)
GPU_PERFORMANCE_STATE = Metric(
    "training_gpu_performance_state",
    "gauge",
    "Performance state, from 0 (fastest) to 15.",
    _OF_GPU,
    section=_GPU,
)
GPU_FAN_SPEED = Metric(
    "training_gpu_fan_speed_ratio",
    "gauge",
    "Intended speed of the fan, as a share of its greatest.",
    _OF_GPU,
    section=_GPU,
)
GPU_ENERGY = Metric(
    "training_gpu_energy_joules_total",
    "counter",
    "Energy used since the driver was loaded.",
    _OF_GPU,
    section=_GPU,
)
GPU_ECC_ERRORS = Metric(
    "training_gpu_ecc_errors_total",
    "counter",
    "Memory errors since the driver was loaded.",
    ("gpu", "type"),
    {"type": ECC_ERROR_TYPES},
    _GPU,
)
GPU_REMAPPED_ROWS = Metric(
    "training_gpu_remapped_rows",
    "gauge",
    "Rows of memory that were replaced by spare ones, by the errors that caused it.",
    ("gpu", "cause"),
    {"cause": ECC_ERROR_TYPES},
    _GPU,
)
GPU_ROW_REMAP_PENDING = Metric(
    "training_gpu_row_remap_pending",
    "gauge",
    "1 when rows wait for a reset of the GPU to be replaced.",
    _OF_GPU,
    section=_GPU,
)
GPU_ROW_REMAP_FAILED = Metric(
    "training_gpu_row_remap_failed",
    "gauge",
    "1 when a row could not be replaced.",
    _OF_GPU,
    section=_GPU,
)
GPU_RETIRED_PAGES = Metric(
    "training_gpu_retired_pages",
    "gauge",
    "Pages of memory that are no longer used, by the errors that caused it.",
    ("gpu", "cause"),
    {"cause": ECC_ERROR_TYPES},
    _GPU,
)
GPU_XID_ERRORS = Metric(
    "training_gpu_xid_errors_total",
    "counter",
    "Critical errors that the driver reported while this process listened, by Xid code.",
    ("gpu", "xid"),
    {"xid": XIDS},
    _GPU,
)
GPU_PCIE_THROUGHPUT = Metric(
    "training_gpu_pcie_bytes_per_second",
    "gauge",
    "Recent traffic on the PCI bus, as the GPU sees it; only with gpu_pcie, as asking for it takes "
    "the driver 40 ms.",
    ("gpu", "direction"),
    {"direction": DIRECTIONS},
    _GPU,
)
GPU_NVLINKS = Metric(
    "training_gpu_nvlinks",
    "gauge",
    "NVLink connections by state.",
    ("gpu", "state"),
    {"state": LINK_STATES},
    _GPU,
)
GPU_NVLINK_TRAFFIC = Metric(
    "training_gpu_nvlink_bytes_total",
    "counter",
    "Data moved over all NVLink connections.",
    ("gpu", "direction"),
    {"direction": DIRECTIONS},
    _GPU,
)
GPU_FAILURES_TOTAL = Metric(
    "training_gpu_failures_total",
    "counter",
    "Times that the driver or a GPU could not be read, by reason.",
    ("reason",),
    {"reason": GPU_FAILURES},
    _GPU,
)
GPU_DRIVER_STALLED = Metric(
    "training_gpu_driver_stalled",
    "gauge",
    "1 from when calls into the driver do not return in good time until a whole reading has.",
    section=_GPU,
)
GPU_LAST_SAMPLE_TIMESTAMP = Metric(
    "training_gpu_last_sample_timestamp_seconds",
    "gauge",
    "Unix time at which the last reading of the GPUs began.",
    section=_GPU,
)
GPU_SAMPLE_DURATION = Metric(
    "training_gpu_sample_duration_seconds",
    "gauge",
    "Time that the last reading of all GPUs took.",
    section=_GPU,
)

# What torch's caching allocator says. The label `device` is the number by which CUDA knows it in
# this process.
_CUDA = "CUDA memory of this process, as torch's allocator sees it"
_OF_DEVICE = ("device",)
CUDA_ALLOCATED = Metric(
    "training_cuda_memory_allocated_bytes",
    "gauge",
    "Memory held by live tensors.",
    _OF_DEVICE,
    section=_CUDA,
)
CUDA_ALLOCATED_PEAK = Metric(
    "training_cuda_memory_allocated_peak_bytes",
    "gauge",
    "Most memory that live tensors held, since the start or since somebody reset the peak.",
    _OF_DEVICE,
    section=_CUDA,
)
CUDA_RESERVED = Metric(
    "training_cuda_memory_reserved_bytes",
    "gauge",
    "Memory that the allocator holds from the driver, for live tensors and for later ones.",
    _OF_DEVICE,
    section=_CUDA,
)
CUDA_RESERVED_PEAK = Metric(
    "training_cuda_memory_reserved_peak_bytes",
    "gauge",
    "Most memory that the allocator held, since the start or since somebody reset the peak.",
    _OF_DEVICE,
    section=_CUDA,
)
CUDA_INACTIVE_SPLIT = Metric(
    "training_cuda_memory_inactive_split_bytes",
    "gauge",
    "Reserved memory in pieces that cannot be given back: fragmentation.",
    _OF_DEVICE,
    section=_CUDA,
)
CUDA_TOTAL = Metric(
    "training_cuda_memory_total_bytes",
    "gauge",
    "Memory of the device, as CUDA tells it.",
    _OF_DEVICE,
    section=_CUDA,
)
CUDA_ALLOC_RETRIES = Metric(
    "training_cuda_alloc_retries_total",
    "counter",
    "Times that the driver had no memory left, so that the cache was emptied to try again.",
    _OF_DEVICE,
    section=_CUDA,
)
CUDA_OUT_OF_MEMORY = Metric(
    "training_cuda_out_of_memory_total",
    "counter",
    "Times that memory could not be had even so, and an OutOfMemoryError was raised.",
    _OF_DEVICE,
    section=_CUDA,
)
