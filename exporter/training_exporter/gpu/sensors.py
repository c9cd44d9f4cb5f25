# SPDX-License-Identifier: Apache-2.0
"""One small function per sensor: from NVML's units to ours.

Each takes `ask`, which calls an NVML function by its name, and a handle, and returns fields of
GpuReading. A value that is a sentinel, such as 0xFFFFFFFF for "not available", becomes None.
Numbers of NVML's enumerations are from nvml.h, where they are part of the binary interface.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from training_exporter.catalog import (
    ACTIVE,
    CORRECTED,
    INACTIVE,
    OTHER,
    RECEIVED,
    SENT,
    THROTTLE_REASONS,
    UNCORRECTED,
    XIDS,
)
from training_exporter.gpu.errors import SensorFailedError, SensorUnsupportedError

Ask = Callable[..., Any]
Fields = Mapping[str, Any]
Sensor = Callable[[Ask, Any], Fields]

# Above these a value is no reading but a sentinel or rubbish.
MOST_PERCENT = 1000  # a fan may be asked for more than all
MOST_CELSIUS = 1000
MOST_MEGAHERTZ = 100_000
MOST_MILLIWATTS = 100_000_000
MOST_COUNT = 2**62  # DCGM's sentinels lie just below 2**63, NVML's at 2**64 - 1
MOST_SMALL_COUNT = 2**31
SLOWEST_STATE = 15

_MEMORY_V2 = 40 | 2 << 24  # size and version of nvmlMemory_v2_t
_TEMPERATURE_OF_CHIP = 0
_SLOWDOWN = 1
_SM_CLOCK, _MEMORY_CLOCK = 1, 2
_SINCE_DRIVER_LOADED = 0
_ECC_TYPES = {CORRECTED: 0, UNCORRECTED: 1}
_PCIE_COUNTERS = {SENT: 0, RECEIVED: 1}
_NVLINK_FIELDS = {SENT: 138, RECEIVED: 139}  # NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX and _RX
_ALL_LINKS = 2**32 - 1
_MOST_LINKS = 36
_XID_EVENT = 8
_TIMEOUT = 10
_MOST_EVENTS = 256


def _known(value: float, most: float, *, times: float = 1.0, per: float = 1.0) -> float | None:
    """The value in base units, None when it is no reading."""
    return value * times / per if value <= most else None


def utilization(ask: Ask, gpu: Any) -> Fields:
    rates = ask("nvmlDeviceGetUtilizationRates", gpu)
    return {
        "utilization": _known(rates.gpu, 100, per=100),
        "memory_utilization": _known(rates.memory, 100, per=100),
    }


def memory(ask: Ask, gpu: Any) -> Fields:
    """As nvidia-smi shows it: what the driver reserves for itself is neither used nor free.

    Drivers before 510 count it as used.
    """
    try:
        found = ask("nvmlDeviceGetMemoryInfo", gpu, _MEMORY_V2)
    except SensorUnsupportedError:
        found = ask("nvmlDeviceGetMemoryInfo", gpu)
    return {
        "memory_used_bytes": _known(found.used, MOST_COUNT),
        "memory_free_bytes": _known(found.free, MOST_COUNT),
        "memory_total_bytes": _known(found.total, MOST_COUNT),
    }


def power(ask: Ask, gpu: Any) -> Fields:
    return {"power_watts": _known(ask("nvmlDeviceGetPowerUsage", gpu), MOST_MILLIWATTS, per=1e3)}


def power_limit(ask: Ask, gpu: Any) -> Fields:
    limit = ask("nvmlDeviceGetEnforcedPowerLimit", gpu)
    return {"power_limit_watts": _known(limit, MOST_MILLIWATTS, per=1e3)}


def temperature(ask: Ask, gpu: Any) -> Fields:
    found = ask("nvmlDeviceGetTemperature", gpu, _TEMPERATURE_OF_CHIP)
    return {"temperature_celsius": _known(found, MOST_CELSIUS)}


def slowdown_temperature(ask: Ask, gpu: Any) -> Fields:
    found = ask("nvmlDeviceGetTemperatureThreshold", gpu, _SLOWDOWN)
    return {"slowdown_celsius": _known(found, MOST_CELSIUS)}


def sm_clock(ask: Ask, gpu: Any) -> Fields:
    found = ask("nvmlDeviceGetClockInfo", gpu, _SM_CLOCK)
    return {"sm_clock_hertz": _known(found, MOST_MEGAHERTZ, times=1e6)}


def memory_clock(ask: Ask, gpu: Any) -> Fields:
    found = ask("nvmlDeviceGetClockInfo", gpu, _MEMORY_CLOCK)
    return {"memory_clock_hertz": _known(found, MOST_MEGAHERTZ, times=1e6)}


def throttled(ask: Ask, gpu: Any) -> Fields:
    """The reasons are bits 0 to 8 of a mask, in the order of catalog.THROTTLE_REASONS."""
    try:
        mask = ask("nvmlDeviceGetCurrentClocksEventReasons", gpu)
    except SensorUnsupportedError:  # the name before driver 535
        mask = ask("nvmlDeviceGetCurrentClocksThrottleReasons", gpu)
    if mask > MOST_COUNT:
        return {}
    bits = enumerate(THROTTLE_REASONS)
    return {"throttled": {reason: float(mask >> bit & 1) for bit, reason in bits}}


def performance_state(ask: Ask, gpu: Any) -> Fields:
    found = ask("nvmlDeviceGetPerformanceState", gpu)  # 32 says that it is not known
    return {"performance_state": _known(found, SLOWEST_STATE)}


def fan_speed(ask: Ask, gpu: Any) -> Fields:
    return {"fan_speed": _known(ask("nvmlDeviceGetFanSpeed", gpu), MOST_PERCENT, per=100)}


def energy(ask: Ask, gpu: Any) -> Fields:
    found = ask("nvmlDeviceGetTotalEnergyConsumption", gpu)
    return {"energy_joules": _known(found, MOST_COUNT, per=1e3)}


def corrected_errors(ask: Ask, gpu: Any) -> Fields:
    return _ecc_errors(ask, gpu, CORRECTED)


def uncorrected_errors(ask: Ask, gpu: Any) -> Fields:
    return _ecc_errors(ask, gpu, UNCORRECTED)


def _ecc_errors(ask: Ask, gpu: Any, kind: str) -> Fields:
    found = ask("nvmlDeviceGetTotalEccErrors", gpu, _ECC_TYPES[kind], _SINCE_DRIVER_LOADED)
    return {"ecc_errors": {kind: _known(found, MOST_COUNT)}}


def remapped_rows(ask: Ask, gpu: Any) -> Fields:
    rows = ask("nvmlDeviceGetRemappedRows", gpu)
    corrected, uncorrected, pending, failed = (_known(n, MOST_SMALL_COUNT) for n in rows)
    return {
        "remapped_rows": {CORRECTED: corrected, UNCORRECTED: uncorrected},
        "row_remap_pending": pending,
        "row_remap_failed": failed,
    }


def corrected_pages(ask: Ask, gpu: Any) -> Fields:
    """Pages retired after several errors of a single bit."""
    return {"retired_pages": {CORRECTED: float(len(ask("nvmlDeviceGetRetiredPages", gpu, 0)))}}


def uncorrected_pages(ask: Ask, gpu: Any) -> Fields:
    """Pages retired after an error of two bits."""
    return {"retired_pages": {UNCORRECTED: float(len(ask("nvmlDeviceGetRetiredPages", gpu, 1)))}}


def nvlinks(ask: Ask, gpu: Any) -> Fields:
    found = [_link_state(ask, gpu, link) for link in range(_MOST_LINKS)]
    states = [state for state in found if state is not None]
    if not states:
        raise SensorUnsupportedError("the GPU has no NVLink")
    active = sum(map(bool, states))
    return {"nvlinks": {ACTIVE: float(active), INACTIVE: float(len(states) - active)}}


def _link_state(ask: Ask, gpu: Any, link: int) -> int | None:
    try:
        return int(ask("nvmlDeviceGetNvLinkState", gpu, link))
    except SensorUnsupportedError:  # no such link
        return None


def nvlink_traffic(ask: Ask, gpu: Any) -> Fields:
    """The counters are in KiB."""
    wanted = [(field, _ALL_LINKS) for field in _NVLINK_FIELDS.values()]
    # One more than is read: some drivers touch an entry beyond the last in queries of NVLink.
    found = ask("nvmlDeviceGetFieldValues", gpu, [*wanted, wanted[-1]])[: len(wanted)]
    traffic = {
        direction: _known(value.value.ullVal, MOST_COUNT, times=1024)
        for direction, value in zip(_NVLINK_FIELDS, found, strict=True)
        if value.nvmlReturn == 0
    }
    if not traffic:
        raise SensorUnsupportedError("the GPU does not count NVLink traffic")
    return {"nvlink_traffic": traffic}


def pcie_sent(ask: Ask, gpu: Any) -> Fields:
    return _pcie(ask, gpu, SENT)


def pcie_received(ask: Ask, gpu: Any) -> Fields:
    return _pcie(ask, gpu, RECEIVED)


def _pcie(ask: Ask, gpu: Any, direction: str) -> Fields:
    """The driver looks for 20 ms, and answers in KB/s."""
    found = ask("nvmlDeviceGetPcieThroughput", gpu, _PCIE_COUNTERS[direction])
    return {"pcie": {direction: _known(found, MOST_SMALL_COUNT, times=1e3)}}


class XidSensor:
    """Counts the critical errors of one GPU by events that the driver queues for us.

    Args:
        counts: the count by catalog.XIDS, kept over a loss of the driver; empty until the driver
            grants events.
    """

    def __init__(self, counts: dict[str, float]) -> None:
        self._counts = counts
        self._events: Any = None

    def __call__(self, ask: Ask, gpu: Any) -> Fields:
        if self._events is None:
            self._events = self._listen(ask, gpu)
        for _ in range(_MOST_EVENTS):
            try:
                event = ask("nvmlEventSetWait_v2", self._events, 0)
            except SensorFailedError as error:
                if error.code == _TIMEOUT:  # no more of them
                    break
                raise
            xid = str(event.eventData)
            self._counts[xid if xid in XIDS else OTHER] += 1
        return {"xids": dict(self._counts)}

    def _listen(self, ask: Ask, gpu: Any) -> Any:
        events = ask("nvmlEventSetCreate")
        try:
            ask("nvmlDeviceRegisterEvents", gpu, _XID_EVENT, events)
        except Exception:
            ask("nvmlEventSetFree", events)
            raise
        for xid in XIDS:
            self._counts.setdefault(xid, 0.0)
        return events

    def close(self, ask: Ask) -> None:
        if self._events is not None:
            events, self._events = self._events, None
            ask("nvmlEventSetFree", events)


SENSORS: dict[str, Sensor] = {
    sensor.__name__: sensor
    for sensor in (
        memory, utilization, power, power_limit, temperature, slowdown_temperature, sm_clock,
        memory_clock, throttled, performance_state, fan_speed, energy, corrected_errors,
        uncorrected_errors, remapped_rows, corrected_pages, uncorrected_pages, nvlinks,
        nvlink_traffic,
    )
}  # fmt: skip
PCIE_SENSORS: dict[str, Sensor] = {"pcie_sent": pcie_sent, "pcie_received": pcie_received}
"""They take the driver 20 ms each."""
