# SPDX-License-Identifier: Apache-2.0
"""From the readings of GPUs to the page."""

from __future__ import annotations

from dataclasses import fields

from prometheus_client import CollectorRegistry

from training_exporter import catalog
from training_exporter.collectors.gpu import ABOUT_READING, MAPPINGS, NUMBERS, GpuCollector
from training_exporter.gpu.readings import GpuReading, GpuReadings

RUN = {"run": "tiny", "rank": "1"}
IDENTITY = {
    "uuid": "GPU-0a", "name": "H100", "driver_version": "570.1", "pci_bus_id": "00000000:3B:00.0",
}  # fmt: skip
BARE = GpuReadings(
    gpus=(GpuReading(gpu="0", power_watts=100.0), GpuReading(gpu="1")),
    timestamp=1.7e9, duration_seconds=0.002, stalled=False, failures={"gpu_lost": 0.0},
)  # fmt: skip


def page(readings: GpuReadings) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(GpuCollector(lambda: RUN, lambda: readings))
    return registry


def families(readings: GpuReadings) -> set[str]:
    return {family.name for family in page(readings).collect() if family.samples}


def test_each_metric_is_rendered_once() -> None:
    """All that the catalogue has about GPUs, from a field of its own."""
    rendered = [*ABOUT_READING, *(metric for metric, _ in (*NUMBERS, *MAPPINGS))]
    sources = [field for _, field in (*NUMBERS, *MAPPINGS)]

    assert sorted(metric.name for metric in rendered) == sorted(
        name for name in catalog.CATALOG if name.startswith("training_gpu_")
    )
    assert len(set(sources)) == len(sources)
    assert set(sources) <= {field.name for field in fields(GpuReading)}


def test_no_readings_no_series() -> None:
    """A machine without such GPUs has a page without them."""
    assert families(GpuReadings()) == set()


def test_what_is_not_known_is_absent() -> None:
    """Of one GPU and not of the other; nothing is made 0."""
    registry = page(BARE)

    assert registry.get_sample_value("training_gpu_power_watts", {**RUN, "gpu": "0"}) == 100.0
    assert registry.get_sample_value("training_gpu_power_watts", {**RUN, "gpu": "1"}) is None
    assert families(BARE) == {
        "training_gpu_info", "training_gpu_power_watts", "training_gpu_failures",
        "training_gpu_driver_stalled", "training_gpu_last_sample_timestamp_seconds",
        "training_gpu_sample_duration_seconds",
    }  # fmt: skip


def test_numbers_and_mappings_go_where_they_belong() -> None:
    """Each field holds a number of its own, and each series shows the one of its field."""
    numbers = {field: float(place) for place, (_, field) in enumerate(NUMBERS, 1)}
    mappings = {field: {"key": 100.0 + place} for place, (_, field) in enumerate(MAPPINGS)}
    registry = page(GpuReadings(gpus=(GpuReading(gpu="0:1", **numbers, **mappings),)))  # type: ignore[arg-type]

    for metric, field in NUMBERS:
        labels = {**RUN, "gpu": "0:1"}
        assert registry.get_sample_value(metric.name, labels) == numbers[field]
    for metric, field in MAPPINGS:
        labels = {**RUN, **dict(zip(metric.labels, ("0:1", "key"), strict=True))}
        assert registry.get_sample_value(metric.name, labels) == mappings[field]["key"]


def test_info_says_how_cuda_calls_it() -> None:
    """By which the allocator's series are joined to the driver's; empty when not known."""
    known, unknown = (GpuReading(gpu=gpu, **IDENTITY) for gpu in "01")  # type: ignore[arg-type]
    known = GpuReading(gpu="0", cuda_device=0, **IDENTITY)  # type: ignore[arg-type]
    registry = page(GpuReadings(gpus=(known, unknown)))

    for gpu, cuda_device in (("0", "0"), ("1", "")):
        labels = {**RUN, **IDENTITY, "gpu": gpu, "cuda_device": cuda_device}
        assert registry.get_sample_value("training_gpu_info", labels) == 1.0


def test_of_a_lost_gpu_only_its_errors_are_left() -> None:
    """They say why it went."""
    lost = GpuReading(gpu="0", lost=True, xids={"79": 1.0}, **IDENTITY)  # type: ignore[arg-type]

    assert families(GpuReadings(gpus=(lost,))) == {"training_gpu_xid_errors"}


def test_a_stalled_driver() -> None:
    """The gauge, and the count."""
    registry = page(GpuReadings(stalled=True, failures={"driver_stalled": 1.0}))

    assert registry.get_sample_value("training_gpu_driver_stalled", RUN) == 1.0
    labels = {**RUN, "reason": "driver_stalled"}
    assert registry.get_sample_value("training_gpu_failures_total", labels) == 1.0
