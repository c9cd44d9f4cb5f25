# SPDX-License-Identifier: Apache-2.0
"""From a sensor to a reading: the real pynvml on the stand-in library."""

from __future__ import annotations

import pynvml
import pytest

from training_exporter import catalog
from training_exporter.demo.stand_in_nvml import Control
from training_exporter.gpu.calls import CallWatch
from training_exporter.gpu.nvml import ASK_AGAIN_SECONDS, NvmlDriver
from training_exporter.gpu.readings import GpuReading

UNAVAILABLE = 2**32 - 1
GIB = 2**30


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def opened(clock: Clock | None = None, **options: object) -> NvmlDriver:
    return NvmlDriver(CallWatch(), clock=clock or Clock(), **options)  # type: ignore[arg-type]


def first(driver: NvmlDriver) -> GpuReading:
    return driver.read(driver.devices[0], 3)


def test_every_sensor_in_base_units(nvml: Control) -> None:
    """Watts, hertz, joules, bytes and ratios, as the default GPU of the stand-in has them."""
    reading = first(opened())

    assert (reading.gpu, reading.name, reading.driver_version, reading.pci_bus_id) == (
        "0", "Stand-in GPU (no hardware)", "stand-in", "00000000:01:00.0",
    )  # fmt: skip
    assert reading.uuid == nvml.gpu(0).uuid.decode()
    assert reading.cuda_device == 3
    assert (reading.utilization, reading.memory_utilization) == (0.9, 0.4)
    assert (reading.power_watts, reading.power_limit_watts) == (200.0, 250.0)
    assert (reading.temperature_celsius, reading.slowdown_celsius) == (60.0, 90.0)
    assert (reading.sm_clock_hertz, reading.memory_clock_hertz) == (1.4e9, 5e9)
    assert (reading.performance_state, reading.fan_speed) == (0.0, 0.5)
    assert reading.energy_joules == 1000.0
    assert reading.nvlinks == {"active": 4.0, "inactive": 14.0}
    assert reading.nvlink_traffic == {"sent": 4000 * 1024.0, "received": 4000 * 1024.0}
    assert reading.pcie == {}


def test_memory_is_what_nvidia_smi_shows(nvml: Control) -> None:
    """What the driver keeps for itself is neither used nor free."""
    reading = first(opened())

    assert reading.memory_total_bytes == 16 * GIB
    assert reading.memory_used_bytes == 10 * GIB
    assert reading.memory_free_bytes == 5.75 * GIB


def test_an_old_driver_has_the_first_kind_of_memory(nvml: Control) -> None:
    """Before driver 510 there is only one that counts the reserved memory as used."""
    nvml.fail("nvmlDeviceGetMemoryInfo_v2", pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)

    assert first(opened()).memory_used_bytes == 10.25 * GIB


@pytest.mark.parametrize("bit", range(9))
def test_throttle_reasons_are_bits(nvml: Control, bit: int) -> None:
    """Each reason has its own, and all others are 0, so that an alert can begin and end."""
    nvml.gpu(0).clock_reasons = 1 << bit

    throttled = first(opened()).throttled

    assert tuple(throttled) == catalog.THROTTLE_REASONS
    assert [reason for reason, on in throttled.items() if on] == [catalog.THROTTLE_REASONS[bit]]


def test_throttle_reasons_by_the_old_name(nvml: Control) -> None:
    """Drivers before 535 know the function by another name."""
    nvml.fail("nvmlDeviceGetCurrentClocksEventReasons", pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)

    assert first(opened()).throttled["sw_power_cap"] == 1.0


def test_errors_and_rows_by_what_caused_them(nvml: Control) -> None:
    """Corrected and uncorrected ones are not mixed up."""
    gpu = nvml.gpu(0)
    gpu.ecc_errors[0][0], gpu.ecc_errors[1][0] = 7, 1
    gpu.retired_pages[0], gpu.retired_pages[1] = 3, 2
    for place, value in enumerate((5, 4, 1, 0)):
        gpu.remapped_rows[place] = value

    reading = first(opened())

    assert reading.ecc_errors == {"corrected": 7.0, "uncorrected": 1.0}
    assert reading.retired_pages == {"corrected": 3.0, "uncorrected": 2.0}
    assert reading.remapped_rows == {"corrected": 5.0, "uncorrected": 4.0}
    assert (reading.row_remap_pending, reading.row_remap_failed) == (1.0, 0.0)


def test_pcie_only_when_asked_for(nvml: Control) -> None:
    """The driver counts for 20 ms in each direction."""
    assert first(opened(pcie=True)).pcie == {"sent": 1e8, "received": 2e8}
    assert nvml.calls("nvmlDeviceGetPcieThroughput") == 2


def test_a_gpu_without_nvlink(nvml: Control) -> None:
    """Has no connections and no traffic, rather than none of either."""
    nvml.gpu(0).nvlinks = 0

    reading = first(opened())

    assert (reading.nvlinks, reading.nvlink_traffic) == ({}, {})


# Each sensor: the function that serves it, and the fields that go with it.
SENSORS = {
    "nvmlDeviceGetUtilizationRates": ("utilization", "memory_utilization"),
    "nvmlDeviceGetPowerUsage": ("power_watts",),
    "nvmlDeviceGetEnforcedPowerLimit": ("power_limit_watts",),
    "nvmlDeviceGetTemperature": ("temperature_celsius",),
    "nvmlDeviceGetTemperatureThreshold": ("slowdown_celsius",),
    "nvmlDeviceGetClockInfo": ("sm_clock_hertz", "memory_clock_hertz"),
    "nvmlDeviceGetPerformanceState": ("performance_state",),
    "nvmlDeviceGetFanSpeed": ("fan_speed",),
    "nvmlDeviceGetTotalEnergyConsumption": ("energy_joules",),
    "nvmlDeviceGetTotalEccErrors": ("ecc_errors",),
    "nvmlDeviceGetRemappedRows": ("remapped_rows", "row_remap_pending", "row_remap_failed"),
    "nvmlDeviceGetRetiredPages": ("retired_pages",),
    "nvmlDeviceGetNvLinkState": ("nvlinks",),
    "nvmlDeviceGetFieldValues": ("nvlink_traffic",),
    "nvmlEventSetCreate": ("xids",),
    "nvmlDeviceRegisterEvents": ("xids",),
}


def lost_fields(whole: GpuReading, other: GpuReading) -> set[str]:
    """Fields that one reading has and the other lacks; all else must be equal."""
    names = GpuReading.__dataclass_fields__
    different = {name for name in names if getattr(whole, name) != getattr(other, name)}
    assert all(getattr(other, name) in (None, {}) for name in different)
    return different


@pytest.mark.parametrize("function", SENSORS)
def test_a_sensor_that_is_not_supported_loses_only_itself(
    nvml: Control, clock: Clock, function: str
) -> None:
    """It is not asked again on each sample, and comes back when the driver has it."""
    whole = first(opened())
    nvml.fail(function, pynvml.NVML_ERROR_NOT_SUPPORTED)
    troubles: list[str] = []
    driver = opened(clock, on_trouble=lambda *what: troubles.append(what[1]))

    lacking = first(driver)
    asked = nvml.calls(function)
    first(driver)

    assert lost_fields(whole, lacking) == set(SENSORS[function])
    assert nvml.calls(function) == asked
    assert troubles == []
    nvml.fail(function, 0)
    clock.now += ASK_AGAIN_SECONDS
    assert first(driver) == whole


def _once(troubles: dict[str, str], sensor: str, message: str) -> None:
    assert sensor not in troubles
    troubles[sensor] = message


@pytest.mark.parametrize("function", [name for name in SENSORS if "Event" not in name])
@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_UNKNOWN, pynvml.NVML_ERROR_TIMEOUT])
def test_a_sensor_that_fails_loses_only_itself(nvml: Control, function: str, code: int) -> None:
    """It is told once, and comes back with the next sample."""
    troubles: dict[str, str] = {}
    driver = opened(on_trouble=lambda gpu, sensor, message: _once(troubles, sensor, message))
    whole = first(driver)
    nvml.fail(function, code)

    lacking = [first(driver), first(driver)]
    nvml.fail(function, 0)

    assert {frozenset(lost_fields(whole, each)) for each in lacking} == {
        frozenset(SENSORS[function])
    }
    assert all(message.startswith(function) for message in troubles.values())
    assert troubles
    assert first(driver) == whole


def test_what_an_old_pynvml_lacks_is_not_supported(
    nvml: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nvidia-ml-py of some years ago has fewer functions."""
    monkeypatch.delattr(pynvml, "nvmlDeviceGetRemappedRows")

    assert first(opened()).remapped_rows == {}


SENTINELS: dict[str, tuple[str, int, str]] = {
    "power": ("power", UNAVAILABLE, "power_watts"),
    "limit": ("enforced_power_limit", UNAVAILABLE, "power_limit_watts"),
    "temperature": ("temperature", UNAVAILABLE, "temperature_celsius"),
    "fan": ("fan_speed", UNAVAILABLE, "fan_speed"),
    "utilisation": ("utilization_gpu", UNAVAILABLE, "utilization"),
    "utilisation of memory": ("utilization_memory", 101, "memory_utilization"),
    "state": ("performance_state", pynvml.NVML_PSTATE_UNKNOWN, "performance_state"),
    "energy": ("energy", 2**64 - 1, "energy_joules"),
    "memory": ("memory_used", 2**64 - 1, "memory_used_bytes"),
    "DCGM's": ("memory_used", 2**63 - 14, "memory_used_bytes"),
}


@pytest.mark.parametrize(("entry", "value", "field"), SENTINELS.values(), ids=SENTINELS)
def test_a_sentinel_is_no_reading(nvml: Control, entry: str, value: int, field: str) -> None:
    """4,294,967 W would ruin every graph."""
    setattr(nvml.gpu(0), entry, value)

    assert getattr(first(opened()), field) is None


def test_sentinels_within_a_mapping(nvml: Control) -> None:
    """Only the part that is not known is absent."""
    nvml.gpu(0).ecc_errors[1][0] = 2**64 - 1
    nvml.gpu(0).clock_reasons = 2**64 - 1

    reading = first(opened())

    assert reading.ecc_errors == {"corrected": 0.0}
    assert reading.throttled == {}
