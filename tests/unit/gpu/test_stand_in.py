# SPDX-License-Identifier: Apache-2.0
"""What the stand-in NVML library answers, asked by the real pynvml."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import perf_counter, time
from typing import Any

import pynvml
import pytest

from tests.unit.gpu.stand_in import address
from training_exporter.demo import stand_in_nvml
from training_exporter.demo.stand_in_nvml import Control

Handle = Any
GIB = 2**30


@pytest.fixture
def gpu(nvml: Control) -> Handle:
    """A handle of the first GPU."""
    pynvml.nvmlInit()
    return pynvml.nvmlDeviceGetHandleByIndex(0)


def test_pynvml_has_loaded_the_stand_in_by_its_soname(gpu: Handle, stand_in_library: Path) -> None:
    """The linker finds a library that is loaded before it looks at any disk."""
    assert pynvml.nvmlLib._name == stand_in_nvml.SONAME
    assert stand_in_nvml.loaded() == {stand_in_library}


def test_it_says_that_there_is_no_hardware(gpu: Handle) -> None:
    """Nobody can take its numbers for real ones."""
    assert pynvml.nvmlDeviceGetCount() == 2
    assert pynvml.nvmlSystemGetDriverVersion() == "stand-in"
    assert pynvml.nvmlSystemGetNVMLVersion() == "stand-in"
    assert pynvml.nvmlDeviceGetName(gpu) == "Stand-in GPU (no hardware)"


def test_pytorch_does_not_count_its_gpus(gpu: Handle) -> None:
    """PyTorch asks by a name without a number, and falls back to CUDA where there is none."""
    assert not hasattr(pynvml.nvmlLib, "nvmlInit")


QUERIES: dict[str, tuple[Callable[[Handle], object], str, object, object]] = {
    "power": (pynvml.nvmlDeviceGetPowerUsage, "power", 123456, 123456),
    "power unknown": (pynvml.nvmlDeviceGetPowerUsage, "power", 2**32 - 1, 2**32 - 1),
    "limit": (pynvml.nvmlDeviceGetPowerManagementLimit, "power_limit", 5, 5),
    "enforced": (pynvml.nvmlDeviceGetEnforcedPowerLimit, "enforced_power_limit", 6, 6),
    "energy": (pynvml.nvmlDeviceGetTotalEnergyConsumption, "energy", 2**40, 2**40),
    "temperature": (lambda gpu: pynvml.nvmlDeviceGetTemperature(gpu, 0), "temperature", 71, 71),
    "temperature V": (lambda gpu: pynvml.nvmlDeviceGetTemperatureV(gpu, 0), "temperature", 72, 72),
    "reasons": (pynvml.nvmlDeviceGetCurrentClocksEventReasons, "clock_reasons", 0x60, 0x60),
    "throttling": (pynvml.nvmlDeviceGetCurrentClocksThrottleReasons, "clock_reasons", 8, 8),
    "state": (pynvml.nvmlDeviceGetPerformanceState, "performance_state", 8, 8),
    "fan": (pynvml.nvmlDeviceGetFanSpeed, "fan_speed", 33, 33),
    "fans": (pynvml.nvmlDeviceGetNumFans, "fans", 3, 3),
    "ecc": (pynvml.nvmlDeviceGetEccMode, "ecc_pending", 0, [1, 0]),
    "pending": (pynvml.nvmlDeviceGetRetiredPagesPendingStatus, "retired_pending", 1, 1),
    "serial": (pynvml.nvmlDeviceGetSerial, "serial", b"42", "42"),
    "uuid": (pynvml.nvmlDeviceGetUUID, "uuid", b"GPU-1", "GPU-1"),
    "capability": (pynvml.nvmlDeviceGetCudaComputeCapability, "compute_minor", 9, (8, 9)),
    "index": (pynvml.nvmlDeviceGetIndex, "power", 0, 0),
    "mig mode": (pynvml.nvmlDeviceGetMigMode, "mig_pending", 1, [0, 1]),
    "mig count": (pynvml.nvmlDeviceGetMaxMigDeviceCount, "mig_max", 0, 0),
    "decoder": (pynvml.nvmlDeviceGetDecoderUtilization, "utilization_decoder", 7, [7, 167000]),
    "encoder": (pynvml.nvmlDeviceGetEncoderUtilization, "utilization_encoder", 8, [8, 167000]),
}


@pytest.mark.parametrize(("ask", "field", "value", "answer"), QUERIES.values(), ids=QUERIES)
def test_an_answer_is_what_the_control_file_says(
    nvml: Control,
    gpu: Handle,
    ask: Callable[[Handle], object],
    field: str,
    value: object,
    answer: object,
) -> None:
    """Written while the library is in use, and of that GPU only."""
    other = pynvml.nvmlDeviceGetHandleByIndex(1)
    before = ask(other)

    setattr(nvml.gpu(0), field, value)

    assert ask(gpu) == answer
    assert ask(other) == before


LISTS: dict[str, tuple[Callable[..., object], str]] = {
    "thresholds": (pynvml.nvmlDeviceGetTemperatureThreshold, "thresholds"),
    "clocks": (pynvml.nvmlDeviceGetClockInfo, "clocks"),
    "clocks at most": (pynvml.nvmlDeviceGetMaxClockInfo, "max_clocks"),
}


@pytest.mark.parametrize(("ask", "field"), LISTS.values(), ids=LISTS)
def test_an_argument_chooses_one_of_four(
    nvml: Control, gpu: Handle, ask: Callable[..., object], field: str
) -> None:
    """In the order of NVML's own constants; a fifth is no valid argument."""
    getattr(nvml.gpu(0), field)[:] = [10, 20, 30, 40]

    assert [ask(gpu, which) for which in range(4)] == [10, 20, 30, 40]
    with pytest.raises(pynvml.NVMLError_InvalidArgument):
        ask(gpu, 4)


def test_memory_in_both_layouts(nvml: Control, gpu: Handle) -> None:
    """The older counts what the driver keeps for itself as used; the newer tells it apart."""
    whole = nvml.gpu(0)
    whole.memory_total, whole.memory_reserved, whole.memory_used = 16 * GIB, GIB, 5 * GIB

    old = pynvml.nvmlDeviceGetMemoryInfo(gpu)
    new = pynvml.nvmlDeviceGetMemoryInfo(gpu, version=pynvml.nvmlMemory_v2)

    assert (old.total, old.used, old.free) == (16 * GIB, 6 * GIB, 10 * GIB)
    assert (new.total, new.reserved, new.used, new.free) == (16 * GIB, GIB, 5 * GIB, 10 * GIB)


def test_a_layout_that_it_does_not_know_is_refused(gpu: Handle) -> None:
    """As by a driver that is older than the bindings."""
    with pytest.raises(pynvml.NVMLError) as caught:
        pynvml.nvmlDeviceGetMemoryInfo(gpu, version=0x03000028)

    assert caught.value.value == pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH


def test_utilisation_and_the_window_on_memory(nvml: Control, gpu: Handle) -> None:
    """Percent of the time, of the GPU and of its memory; bytes."""
    nvml.gpu(0).utilization_gpu, nvml.gpu(0).utilization_memory = 97, 12
    rates = pynvml.nvmlDeviceGetUtilizationRates(gpu)
    window = pynvml.nvmlDeviceGetBAR1MemoryInfo(gpu)

    assert (rates.gpu, rates.memory) == (97, 12)
    assert (window.bar1Total, window.bar1Used, window.bar1Free) == (2**28, 2**24, 2**28 - 2**24)


def test_a_gpu_is_found_by_its_address_and_its_uuid(nvml: Control, gpu: Handle) -> None:
    """In the short form of the address and the long one, in either case."""
    nvml.gpu(1).pci_domain, nvml.gpu(1).pci_bus = 0xA, 0xCD
    second = pynvml.nvmlDeviceGetHandleByIndex(1)
    pci = pynvml.nvmlDeviceGetPciInfo(second)

    assert (pci.busId, pci.busIdLegacy) == ("0000000A:CD:00.0", "000A:CD:00.0")
    for text in (b"0000000a:cd:00.0", b"000A:CD:00.0"):
        assert address(pynvml.nvmlDeviceGetHandleByPciBusId(text)) == address(second)
    uuid = pynvml.nvmlDeviceGetUUID(second).encode()
    assert address(pynvml.nvmlDeviceGetHandleByUUID(uuid)) == address(second)


@pytest.mark.parametrize(
    ("ask", "error"),
    [
        (lambda: pynvml.nvmlDeviceGetHandleByIndex(2), pynvml.NVMLError_InvalidArgument),
        (lambda: pynvml.nvmlDeviceGetHandleByUUID(b"GPU-0"), pynvml.NVMLError_NotFound),
        (lambda: pynvml.nvmlDeviceGetHandleByPciBusId(b"0:9:0.0"), pynvml.NVMLError_NotFound),
        (lambda: pynvml.nvmlDeviceGetPowerUsage(None), pynvml.NVMLError_InvalidArgument),
    ],
)
def test_what_is_not_there_is_not_found(
    gpu: Handle, ask: Callable[[], object], error: type[Exception]
) -> None:
    """With the errors of the real library."""
    with pytest.raises(error):
        ask()


def test_broken_memory(nvml: Control, gpu: Handle) -> None:
    """ECC errors by kind and time, pages retired by cause, rows remapped."""
    whole = nvml.gpu(0)
    whole.ecc_errors[0][1], whole.ecc_errors[1][0] = 11, 22
    whole.retired_pages[:], whole.remapped_rows[:] = [1, 3], [4, 5, 0, 1]

    assert pynvml.nvmlDeviceGetTotalEccErrors(gpu, 0, 1) == 11
    assert pynvml.nvmlDeviceGetTotalEccErrors(gpu, 1, 0) == 22
    assert [len(pynvml.nvmlDeviceGetRetiredPages(gpu, cause)) for cause in (0, 1)] == [1, 3]
    assert pynvml.nvmlDeviceGetRemappedRows(gpu) == (4, 5, 0, 1)


def test_what_a_gpu_lacks_is_not_supported(nvml: Control, gpu: Handle) -> None:
    """ECC that is off, a card without fans, one without NVLink."""
    nvml.gpu(0).ecc = nvml.gpu(0).fans = nvml.gpu(0).nvlinks = 0

    with pytest.raises(pynvml.NVMLError_NotSupported):
        pynvml.nvmlDeviceGetTotalEccErrors(gpu, 0, 0)
    with pytest.raises(pynvml.NVMLError_NotSupported):
        pynvml.nvmlDeviceGetFanSpeed(gpu)
    with pytest.raises(pynvml.NVMLError_NotSupported):
        pynvml.nvmlDeviceGetNvLinkState(gpu, 0)


def test_nvlinks_and_their_traffic(nvml: Control, gpu: Handle) -> None:
    """Links that are up come first; traffic is a field, of one link or of all."""
    nvml.gpu(0).nvlinks, nvml.gpu(0).nvlink_throughput[1] = 2, 1000
    received = pynvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX
    fields = [(received, 2**32 - 1), (received, 1), (received, 2), 9999]

    states = [pynvml.nvmlDeviceGetNvLinkState(gpu, link) for link in range(3)]
    total, one, beyond, unknown = pynvml.nvmlDeviceGetFieldValues(gpu, fields)

    assert states == [1, 1, 0]
    assert (total.nvmlReturn, total.value.ullVal, one.value.ullVal) == (0, 1000, 500)
    assert total.valueType == pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG
    assert beyond.nvmlReturn == unknown.nvmlReturn == pynvml.NVML_ERROR_NOT_SUPPORTED


@pytest.mark.parametrize(
    ("field", "name"),
    [
        (pynvml.NVML_FI_DEV_MEMORY_TEMP, "memory_temperature"),
        (pynvml.NVML_FI_DEV_NVLINK_LINK_COUNT, "nvlinks"),
    ],
)
def test_other_fields(nvml: Control, gpu: Handle, field: int, name: str) -> None:
    """Small numbers have a type of their own; each says when it was read, in microseconds."""
    setattr(nvml.gpu(0), name, 11)
    (value,) = pynvml.nvmlDeviceGetFieldValues(gpu, [field])

    assert abs(value.timestamp / 1e6 - time()) < 60
    assert (value.valueType, value.value.uiVal) == (pynvml.NVML_VALUE_TYPE_UNSIGNED_INT, 11)


def test_pcie_takes_its_time_and_is_counted(nvml: Control, gpu: Handle) -> None:
    """20 milliseconds, as the real one; whoever does not ask can prove it."""
    nvml.gpu(0).pcie[:] = [5, 6]
    assert nvml.calls("nvmlDeviceGetPcieThroughput") == 0
    begin = perf_counter()

    assert [pynvml.nvmlDeviceGetPcieThroughput(gpu, which) for which in (0, 1)] == [5, 6]
    assert perf_counter() - begin >= 0.04
    assert nvml.calls("nvmlDeviceGetPcieThroughput") == 2


def test_processes(nvml: Control, gpu: Handle) -> None:
    """Those that compute, with their memory; none draws."""
    nvml.gpu(0).process_count = 2
    nvml.gpu(0).processes[1].pid, nvml.gpu(0).processes[1].memory = 77, GIB

    _, process = pynvml.nvmlDeviceGetComputeRunningProcesses(gpu)

    assert (process.pid, process.usedGpuMemory) == (77, GIB)
    assert pynvml.nvmlDeviceGetGraphicsRunningProcesses(gpu) == []
    assert pynvml.nvmlDeviceGetComputeRunningProcesses(pynvml.nvmlDeviceGetHandleByIndex(1)) == []


def test_numbers_that_move_are_those_of_a_gpu_at_work(nvml: Control, gpu: Handle) -> None:
    """Within what the card can do, whatever the time, and not always the same."""
    nvml.move()
    seen = set()
    for seconds in range(1, 101):
        nvml.set_time(seconds)
        rates = pynvml.nvmlDeviceGetUtilizationRates(gpu)
        memory = pynvml.nvmlDeviceGetMemoryInfo(gpu)
        seen.add(rates.gpu)
        assert 60 <= rates.gpu <= 99
        assert 125_000 <= pynvml.nvmlDeviceGetPowerUsage(gpu) <= 250_000
        assert 52 <= pynvml.nvmlDeviceGetTemperature(gpu, 0) < 90
        assert memory.used + memory.free == memory.total
    assert {60, 99} <= seen


def test_energy_is_the_sum_of_power(nvml: Control, gpu: Handle) -> None:
    """Up the wave and down; so it never falls."""
    nvml.move()
    step = 0.01
    energy = expected = 0.0
    for tick in range(1, 10_000):
        nvml.set_time(tick * step)
        expected += pynvml.nvmlDeviceGetPowerUsage(gpu) * step
        energy = pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu)
        assert energy == pytest.approx(expected, abs=5_000)
    assert energy > 10_000_000
