# SPDX-License-Identifier: Apache-2.0
"""A session with NVML: events, devices, and what can be wrong with it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pynvml
import pytest

from tests.unit.gpu.test_sensors import GIB, first, opened
from training_exporter import catalog
from training_exporter.demo.stand_in_nvml import Control
from training_exporter.gpu.errors import DriverUnavailableError, GpuUnavailableError


def test_xids_are_counted_and_begin_at_zero(nvml: Control) -> None:
    """Each GPU has its own; a code that is not in the catalogue is one of the others."""
    driver = opened()
    before, _ = (driver.read(device, None).xids for device in driver.devices)
    for code in (79, 79, 48, 999):
        nvml.xid(0, code)
    nvml.xid(1, 31)

    after = [driver.read(device, None).xids for device in driver.devices]

    assert before == dict.fromkeys(catalog.XIDS, 0.0)
    assert {code: n for code, n in after[0].items() if n} == {"79": 2.0, "48": 1.0, "other": 1.0}
    assert {code: n for code, n in after[1].items() if n} == {"31": 1.0}


def test_xid_counts_outlive_a_session(nvml: Control) -> None:
    """A counter does not fall because NVML was initialised anew."""
    xids: dict[str, dict[str, float]] = {}
    driver = opened(xids=xids)
    first(driver)
    nvml.xid(0, 31)
    first(driver)
    driver.close()

    assert first(opened(xids=xids)).xids["31"] == 1.0


def test_a_lost_gpu_says_so_and_the_other_goes_on(nvml: Control) -> None:
    """It fell off the bus; whatever is asked about it fails."""
    driver = opened()
    nvml.lose(0)

    with pytest.raises(GpuUnavailableError, match="nvml") as lost:
        first(driver)

    assert lost.value.reason == catalog.GPU_LOST
    assert driver.read(driver.devices[1], 1).utilization == 0.9


def test_a_lost_gpu_keeps_its_place_in_the_list(nvml: Control) -> None:
    """Else the next one would be taken for it."""
    nvml.lose(0)

    driver = opened()

    assert [(device.gpu, bool(device.uuid)) for device in driver.devices] == [
        ("0", False), ("1", True),
    ]  # fmt: skip
    with pytest.raises(GpuUnavailableError):
        first(driver)


def test_a_gpu_that_answers_nothing_is_unavailable(nvml: Control) -> None:
    """Its handle may be stale; no reading is not a reading of nothing."""
    driver = opened()
    for function in nvml.functions:
        if function.startswith("nvmlDevice"):
            nvml.fail(function, pynvml.NVML_ERROR_INVALID_ARGUMENT)

    with pytest.raises(GpuUnavailableError, match="answers no question"):
        first(driver)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, catalog.DRIVER_NOT_LOADED),
        (pynvml.NVML_ERROR_NO_PERMISSION, catalog.NO_PERMISSION),
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, catalog.OTHER),
        (pynvml.NVML_ERROR_UNKNOWN, catalog.OTHER),
        (pynvml.NVML_ERROR_NOT_SUPPORTED, catalog.OTHER),
    ],
)
def test_a_driver_that_cannot_be_had(nvml: Control, code: int, reason: str) -> None:
    """The reason is one of the catalogue's, and the message the driver's."""
    nvml.fail("nvmlInitWithFlags", code)

    with pytest.raises(DriverUnavailableError, match="nvmlInit") as error:
        opened()

    assert error.value.reason == reason


@pytest.mark.parametrize(
    "spoil", [Control.unload_driver, Control.load_driver], ids=["unloaded", "reloaded"]
)
def test_a_driver_that_goes_away(nvml: Control, spoil: Callable[[Control], None]) -> None:
    """It is not taken for one GPU's trouble."""
    driver = opened()
    spoil(nvml)

    with pytest.raises(DriverUnavailableError):
        first(driver)

    driver.close()


def test_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without nvidia-ml-py is one without a library."""
    monkeypatch.setitem(sys.modules, "pynvml", None)

    with pytest.raises(DriverUnavailableError, match="nvidia-ml-py") as error:
        opened()

    assert error.value.reason == catalog.LIBRARY_MISSING


def bad_text() -> UnicodeDecodeError:
    return UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")


@pytest.mark.parametrize("error", [TypeError("2 were given"), AttributeError("x"), bad_text()])
def test_what_pynvml_stumbles_over_costs_one_sensor(
    nvml: Control, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Another release of it, or a driver that tells nonsense; said once, with what it was."""
    told: list[tuple[str, str, str]] = []
    driver = opened(on_trouble=lambda *about: told.append(about))

    def broken(gpu: object) -> None:
        raise error

    monkeypatch.setattr(pynvml, "nvmlDeviceGetPowerUsage", broken)
    readings = [first(driver) for _ in range(2)]

    assert [(each.power_watts, each.utilization) for each in readings] == [(None, 0.9)] * 2
    assert [about[:2] for about in told] == [("0", "power")]
    assert type(error).__name__ in told[0][2]


def test_an_answer_of_an_unknown_shape_costs_one_sensor(
    nvml: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is an error behind the call, not in it."""
    told: list[str] = []
    driver = opened(on_trouble=lambda gpu, sensor, message: told.append(sensor))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetUtilizationRates", lambda gpu: (90, 40))

    reading = first(driver)

    assert (reading.utilization, reading.power_watts, told) == (None, 200.0, ["utilization"])


def test_what_pynvml_stumbles_over_while_it_lists_costs_one_gpu(
    nvml: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a name that is no text; and a question about processes has no answer then."""
    real = pynvml.nvmlDeviceGetName

    def broken(*arguments: object) -> str:
        monkeypatch.setattr(pynvml, "nvmlDeviceGetName", real)
        raise bad_text()

    monkeypatch.setattr(pynvml, "nvmlDeviceGetName", broken)
    driver = opened()
    monkeypatch.setattr(pynvml, "nvmlDeviceGetComputeRunningProcesses", broken)

    assert [bool(device.uuid) for device in driver.devices] == [False, True]
    assert not driver.has_process(driver.devices[1], 4711)


@pytest.mark.parametrize("source", ["raise OSError('planted')", "nvmlInit = print"])
def test_a_stranger_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    """Is no library either, whatever it does."""
    (tmp_path / "pynvml.py").write_text(source)
    monkeypatch.delitem(sys.modules, "pynvml")
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(DriverUnavailableError, match="nvidia-ml-py") as error:
        opened()

    assert error.value.reason == catalog.LIBRARY_MISSING


def test_mig_devices_stand_behind_their_gpu(nvml: Control) -> None:
    """With memory, and nothing of what only a whole GPU has."""
    uuids = [nvml.add_mig(0, memory_total=4 * GIB, memory_used=GIB) for _ in range(2)]

    driver = opened()
    part = driver.read(driver.devices[2], 0)

    assert [device.gpu for device in driver.devices] == ["0", "0:0", "0:1", "1"]
    assert driver.devices[0].divided
    assert [device.uuid for device in driver.devices[1:3]] == uuids
    assert driver.devices[2].parent == driver.devices[0].uuid
    assert driver.devices[2].instance == (2, 0)
    assert (part.gpu, part.memory_total_bytes, part.memory_used_bytes) == ("0:1", 4 * GIB, GIB)
    assert (part.utilization, part.power_watts, part.xids) == (None, None, {})


def test_processes(nvml: Control) -> None:
    """By which a process without torch finds its GPU."""
    nvml.gpu(1).process_count = 1
    nvml.gpu(1).processes[0].pid = 4711
    driver = opened()

    found = [driver.has_process(device, 4711) for device in driver.devices]
    nvml.fail("nvmlDeviceGetComputeRunningProcesses_v3", pynvml.NVML_ERROR_NO_PERMISSION)

    assert found == [False, True]
    assert not driver.has_process(driver.devices[1], 4711)


def test_sessions_are_counted_by_nvml(nvml: Control) -> None:
    """Two exporters, or a user's own NVML, do not shut each other down."""
    one, other = opened(), opened()
    one.close()

    assert first(other).power_watts == 200.0


def test_every_event_set_is_given_back(nvml: Control) -> None:
    """Also behind one that cannot be."""
    driver = opened()
    for device in driver.devices:
        driver.read(device, None)
    nvml.fail("nvmlEventSetFree", pynvml.NVML_ERROR_UNKNOWN)

    driver.close()

    assert nvml.calls("nvmlEventSetFree") == 2
    assert nvml.calls("nvmlShutdown") == 1


def test_a_session_that_an_unexpected_error_ends_is_given_back(
    nvml: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that NVML itself refuses is."""
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMigMode", lambda gpu: (0, 0, 0))

    with pytest.raises(ValueError, match="unpack"):
        opened()

    assert nvml.calls("nvmlShutdown") == 1


def test_a_session_that_cannot_begin_is_given_back(nvml: Control) -> None:
    """Each nvmlInit that succeeded has its nvmlShutdown."""
    nvml.fail("nvmlDeviceGetCount_v2", pynvml.NVML_ERROR_UNKNOWN)

    with pytest.raises(DriverUnavailableError):
        opened()

    with pytest.raises(pynvml.NVMLError_Uninitialized):
        pynvml.nvmlSystemGetDriverVersion()
