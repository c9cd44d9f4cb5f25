# SPDX-License-Identifier: Apache-2.0
"""Everything that can go wrong with a driver, and GPUs in parts, through the real pynvml."""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread
from time import perf_counter
from typing import Any

import pynvml
import pytest

from tests.unit.gpu.stand_in import address
from training_exporter.demo.stand_in_nvml import Control

Handle = Any
POWER = "nvmlDeviceGetPowerUsage"
GIB = 2**30


@pytest.fixture
def gpus(nvml: Control) -> tuple[Handle, Handle]:
    """Handles of both GPUs."""
    pynvml.nvmlInit()
    return pynvml.nvmlDeviceGetHandleByIndex(0), pynvml.nvmlDeviceGetHandleByIndex(1)


def error_of(ask: Callable[..., object], *arguments: object) -> int:
    """The NVML error that a call ends with, 0 for none."""
    try:
        ask(*arguments)
    except pynvml.NVMLError as error:
        return int(error.value)
    return 0


ERRORS = sorted(
    value
    for name, value in vars(pynvml).items()
    if name.startswith("NVML_ERROR_") and isinstance(value, int)
)


@pytest.mark.parametrize("code", ERRORS)
def test_a_function_fails_with_any_error_for_one_gpu(
    nvml: Control, gpus: tuple[Handle, Handle], code: int
) -> None:
    """And works again when it is told to; other functions and GPUs never notice."""
    nvml.fail(POWER, code, gpu=0)
    assert error_of(pynvml.nvmlDeviceGetPowerUsage, gpus[0]) == code
    assert error_of(pynvml.nvmlDeviceGetPowerUsage, gpus[1]) == 0
    assert error_of(pynvml.nvmlDeviceGetUUID, gpus[0]) == 0

    nvml.fail(POWER, 0, gpu=0)
    assert error_of(pynvml.nvmlDeviceGetPowerUsage, gpus[0]) == 0


def test_every_function_can_fail(nvml: Control, gpus: tuple[Handle, Handle]) -> None:
    """For all GPUs, also what is about none; each call is counted, also one that fails."""
    library = pynvml.nvmlLib
    for function in nvml.functions:
        before = nvml.calls(function)
        nvml.fail(function, pynvml.NVML_ERROR_UNKNOWN)
        assert getattr(library, function)(gpus[0], None, None, None) == pynvml.NVML_ERROR_UNKNOWN
        assert nvml.calls(function) == before + 1


def test_a_function_that_an_old_driver_has_not(nvml: Control, gpus: tuple[Handle, Handle]) -> None:
    """pynvml says the same for a symbol that is missing as for an answer that says so."""
    nvml.fail(POWER, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)

    with pytest.raises(pynvml.NVMLError_FunctionNotFound):
        pynvml.nvmlDeviceGetPowerUsage(gpus[0])
    with pytest.raises(pynvml.NVMLError_FunctionNotFound):
        pynvml.nvmlDeviceGetArchitecture(gpus[0])


def test_an_error_that_pynvml_has_no_words_for(nvml: Control, gpus: tuple[Handle, Handle]) -> None:
    """The library's own text is asked for."""
    nvml.fail(POWER, 777)

    with pytest.raises(pynvml.NVMLError, match="error 777 of the stand-in NVML"):
        pynvml.nvmlDeviceGetPowerUsage(gpus[0])


@pytest.mark.parametrize("function", [POWER, None])
def test_a_call_hangs_until_it_is_released(
    nvml: Control, gpus: tuple[Handle, Handle], function: str | None
) -> None:
    """One function or all; the interpreter goes on meanwhile."""
    answers: list[int] = []
    nvml.hang(function)
    thread = Thread(target=lambda: answers.append(pynvml.nvmlDeviceGetPowerUsage(gpus[0])))
    thread.start()
    while not nvml.hanging:
        assert thread.is_alive()

    assert thread.is_alive()
    assert not answers
    nvml.release()
    thread.join(5)
    assert answers == [200_000]
    assert nvml.hanging == 0


@pytest.mark.alone
def test_a_call_hangs_for_a_time(nvml: Control, gpus: tuple[Handle, Handle]) -> None:
    """And answers then; another function does not hang."""
    nvml.hang(POWER, seconds=0.05)
    begin = perf_counter()
    pynvml.nvmlDeviceGetUUID(gpus[0])
    between = perf_counter()
    pynvml.nvmlDeviceGetPowerUsage(gpus[0])

    assert between - begin < 0.05 <= perf_counter() - between


def test_a_gpu_falls_off_the_bus_and_comes_back(nvml: Control, gpus: tuple[Handle, Handle]) -> None:
    """Every question about it ends so, also the one for its handle; the other goes on."""
    uuid = pynvml.nvmlDeviceGetUUID(gpus[0]).encode()
    nvml.lose(0)

    for ask, argument in (
        (pynvml.nvmlDeviceGetPowerUsage, gpus[0]),
        (pynvml.nvmlDeviceGetHandleByIndex, 0),
        (pynvml.nvmlDeviceGetHandleByUUID, uuid),
    ):
        assert error_of(ask, argument) == pynvml.NVML_ERROR_GPU_IS_LOST
    assert error_of(pynvml.nvmlDeviceGetPowerUsage, gpus[1]) == 0
    assert pynvml.nvmlDeviceGetCount() == 2

    nvml.find(0)
    assert error_of(pynvml.nvmlDeviceGetPowerUsage, gpus[0]) == 0


def test_a_driver_is_unloaded_and_loaded_anew(nvml: Control, gpus: tuple[Handle, Handle]) -> None:
    """It has to be initialised again then, and old handles are worth nothing."""
    nvml.unload_driver()
    assert error_of(pynvml.nvmlDeviceGetPowerUsage, gpus[0]) == pynvml.NVML_ERROR_DRIVER_NOT_LOADED
    assert error_of(pynvml.nvmlInit) == pynvml.NVML_ERROR_DRIVER_NOT_LOADED

    nvml.load_driver()
    assert error_of(pynvml.nvmlDeviceGetPowerUsage, gpus[0]) == pynvml.NVML_ERROR_UNINITIALIZED

    pynvml.nvmlInit()
    assert error_of(pynvml.nvmlDeviceGetPowerUsage, gpus[0]) == pynvml.NVML_ERROR_INVALID_ARGUMENT
    assert error_of(pynvml.nvmlDeviceGetPowerUsage, pynvml.nvmlDeviceGetHandleByIndex(0)) == 0


def test_it_is_open_until_as_many_close_it_as_opened_it(nvml: Control) -> None:
    """Others in the process may use NVML too."""
    pynvml.nvmlInit()
    pynvml.nvmlInit()
    pynvml.nvmlShutdown()
    assert error_of(pynvml.nvmlDeviceGetCount) == 0

    pynvml.nvmlShutdown()
    assert error_of(pynvml.nvmlDeviceGetCount) == pynvml.NVML_ERROR_UNINITIALIZED
    assert error_of(pynvml.nvmlShutdown) == pynvml.NVML_ERROR_UNINITIALIZED


def test_gpus_come_and_go(nvml: Control, gpus: tuple[Handle, Handle]) -> None:
    """Their number changes at once; a handle of one that is gone is invalid."""
    nvml.gpu_count = 1
    assert pynvml.nvmlDeviceGetCount() == 1
    assert error_of(pynvml.nvmlDeviceGetPowerUsage, gpus[1]) == pynvml.NVML_ERROR_INVALID_ARGUMENT

    with pytest.raises(ValueError, match="17 GPUs: the stand-in has 0 to 16"):
        nvml.gpu_count = 17


def test_xid_errors_come_to_who_waits_for_them(nvml: Control, gpus: tuple[Handle, Handle]) -> None:
    """Once each, in their order, from GPUs that are registered, and none from before."""
    nvml.xid(0, 13)
    events = pynvml.nvmlEventSetCreate()
    kinds = pynvml.nvmlDeviceGetSupportedEventTypes(gpus[0])
    pynvml.nvmlDeviceRegisterEvents(gpus[0], kinds, events)
    for gpu, code in ((0, 48), (1, 31), (0, 79)):
        nvml.xid(gpu, code)

    seen = [pynvml.nvmlEventSetWait(events, 0) for _ in range(2)]

    assert kinds == pynvml.nvmlEventTypeXidCriticalError
    assert [event.eventData for event in seen] == [48, 79]
    assert {address(event.device) for event in seen} == {address(gpus[0])}
    with pytest.raises(pynvml.NVMLError_Timeout):
        pynvml.nvmlEventSetWait(events, 4)
    pynvml.nvmlEventSetFree(events)


def test_what_waits_for_events_hears_of_a_new_driver(
    nvml: Control, gpus: tuple[Handle, Handle]
) -> None:
    """The events of the old one will never come."""
    events = pynvml.nvmlEventSetCreate()
    nvml.load_driver()
    pynvml.nvmlInit()

    assert error_of(pynvml.nvmlEventSetWait, events, 1000) == pynvml.NVML_ERROR_UNINITIALIZED


def test_parts_of_a_gpu(nvml: Control, gpus: tuple[Handle, Handle]) -> None:
    """They have a name, a UUID and memory of their own, and know what they are part of."""
    uuids = [nvml.add_mig(0, memory_total=size * GIB, memory_used=GIB) for size in (5, 10)]
    parts = [pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpus[0], index) for index in range(2)]
    memory = pynvml.nvmlDeviceGetMemoryInfo(parts[1])

    assert pynvml.nvmlDeviceGetMigMode(gpus[0]) == [1, 1]
    assert [pynvml.nvmlDeviceGetUUID(part) for part in parts] == uuids
    assert len({*uuids, nvml.gpu(0).uuid.decode()}) == 3
    assert all(uuid.startswith("MIG-") for uuid in uuids)
    assert (memory.total, memory.used, memory.free) == (10 * GIB, GIB, 9 * GIB)
    found = pynvml.nvmlDeviceGetHandleByUUID(uuids[1].encode())
    assert address(found) == address(parts[1])
    whole = pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(parts[1])
    assert address(whole) == address(gpus[0])
    assert pynvml.nvmlDeviceIsMigDeviceHandle(parts[1]).value == 1
    assert pynvml.nvmlDeviceGetGpuInstanceId(parts[1]) == 2
    assert pynvml.nvmlDeviceGetComputeInstanceId(parts[1]) == 0


def test_what_a_part_of_a_gpu_cannot_say(nvml: Control, gpus: tuple[Handle, Handle]) -> None:
    """Nor the GPU that is divided, of its utilisation; the other one can."""
    nvml.add_mig(0, GIB)
    part = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpus[0], 0)
    unsupported = pynvml.NVML_ERROR_NOT_SUPPORTED

    for ask in (pynvml.nvmlDeviceGetUtilizationRates, pynvml.nvmlDeviceGetPowerUsage):
        assert error_of(ask, part) == unsupported
    assert error_of(pynvml.nvmlDeviceGetUtilizationRates, gpus[0]) == unsupported
    assert error_of(pynvml.nvmlDeviceGetPowerUsage, gpus[0]) == 0
    assert error_of(pynvml.nvmlDeviceGetUtilizationRates, gpus[1]) == 0


def test_parts_that_are_not_there(nvml: Control, gpus: tuple[Handle, Handle]) -> None:
    """A GPU that is not divided has none; one that is has so many."""
    ask = pynvml.nvmlDeviceGetMigDeviceHandleByIndex
    nvml.add_mig(0, GIB)

    assert error_of(ask, gpus[0], 1) == pynvml.NVML_ERROR_NOT_FOUND
    assert error_of(ask, gpus[0], 7) == pynvml.NVML_ERROR_INVALID_ARGUMENT
    assert error_of(ask, gpus[1], 0) == pynvml.NVML_ERROR_NOT_SUPPORTED
