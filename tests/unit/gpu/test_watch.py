# SPDX-License-Identifier: Apache-2.0
"""Reading GPUs again and again, whatever happens to them, without a thread."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pynvml
import pytest

from training_exporter import catalog
from training_exporter.demo.stand_in_nvml import Control
from training_exporter.gpu.devices import CudaView
from training_exporter.gpu.own import PATIENCE_SECONDS, OwnGpus
from training_exporter.gpu.watch import RETRY_SECONDS, GpuWatch, Plan

NO_FAILURES = dict.fromkeys(catalog.GPU_FAILURES, 0.0)
CPU_ONLY: Callable[[Iterable[int]], CudaView | None] = lambda used: None  # noqa: E731
USES_CUDA: Callable[[Iterable[int]], CudaView | None] = lambda used: CudaView(True)  # noqa: E731


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


class Watched:
    """A watch of the stand-in's two GPUs, and the clock that it goes by."""

    def __init__(self, clock: Clock, gpus: str = "all", **options: Any) -> None:
        look = options.pop("look_at_cuda", CPU_ONLY)
        environ = options.pop("environ", {})
        self.clock = clock
        self.errors = 0
        self.own = OwnGpus(gpus, tuple, environ, look)
        self.watch = GpuWatch(
            Plan(gpus), self.own, on_error=self.count_error, clock=clock,
            wall_clock=lambda: 1.7e9, **options,
        )  # fmt: skip

    def count_error(self) -> None:
        self.errors += 1

    def sample(self, later: float = 5.0) -> list[str]:
        """One sample, some seconds after the last; returns the GPUs that are shown as readable."""
        self.clock.now += later
        self.watch.sample()
        return [gpu.gpu for gpu in self.watch.readings().gpus if not gpu.lost]

    def failures(self) -> dict[str, float]:
        return {reason: n for reason, n in self.watch.readings().failures.items() if n}


@pytest.fixture
def watched(nvml: Control, clock: Clock) -> Iterator[Watched]:
    watched = Watched(clock)
    yield watched
    nvml.release()
    watched.watch._drop_driver()


def test_a_sample(watched: Watched) -> None:
    """Both GPUs, when, and how long it took; no failures, each from 0."""
    assert watched.sample() == ["0", "1"]

    readings = watched.watch.readings()
    assert readings.gpus[0].power_watts == 200.0
    assert readings.timestamp == 1.7e9
    assert readings.duration_seconds is not None
    assert readings.duration_seconds > 0
    assert readings.stalled is False
    assert readings.failures == NO_FAILURES


def test_a_machine_without_a_driver_is_not_worth_a_word(
    nvml: Control, clock: Clock, logs: pytest.LogCaptureFixture
) -> None:
    """Whoever trains on a CPU sees no warning and no series."""
    nvml.unload_driver()
    watched = Watched(clock)

    assert watched.sample() == []
    assert watched.watch.readings() == type(watched.watch.readings())()
    assert logs.records == []


def test_a_driver_that_is_needed_and_missing_is_told_once(
    nvml: Control, clock: Clock, logs: pytest.LogCaptureFixture
) -> None:
    """CUDA is in use, so something is wrong; each attempt counts."""
    nvml.unload_driver()
    watched = Watched(clock, look_at_cuda=USES_CUDA)

    for _ in range(3):
        watched.sample(RETRY_SECONDS)

    assert watched.failures() == {"driver_not_loaded": 3.0}
    assert watched.watch.readings().stalled is None
    assert [record.levelname for record in logs.records] == ["WARNING"]
    assert "NVIDIA driver cannot be used" in logs.text


def test_a_driver_is_missed_as_soon_as_cuda_is_in_use(nvml: Control, clock: Clock) -> None:
    """Not only at the next attempt."""
    views = iter([None, None, CudaView(True), CudaView(True)])
    nvml.unload_driver()
    watched = Watched(clock, look_at_cuda=lambda used: next(views))
    watched.sample(0)
    assert watched.failures() == {}

    watched.sample(1)
    watched.sample(1)

    assert watched.failures() == {"driver_not_loaded": 1.0}


def test_a_driver_that_is_loaded_later(nvml: Control, clock: Clock) -> None:
    """It is looked for now and then, and not on each sample."""
    nvml.unload_driver()
    watched = Watched(clock)
    watched.sample()
    nvml.load_driver()

    assert watched.sample() == []
    assert watched.sample(RETRY_SECONDS) == ["0", "1"]


def test_a_driver_that_is_loaded_anew(
    nvml: Control, watched: Watched, logs: pytest.LogCaptureFixture
) -> None:
    """The next sample has it again; one line for the loss and one for the return."""
    watched.sample()
    nvml.load_driver()

    assert watched.sample() == []
    assert watched.failures() == {"other": 1.0}
    assert watched.sample() == ["0", "1"]
    assert [record.levelname for record in logs.records] == ["WARNING", "INFO"]
    assert "the NVIDIA driver answers again" in logs.text


def test_a_driver_that_is_unloaded(
    nvml: Control, watched: Watched, logs: pytest.LogCaptureFixture
) -> None:
    """No series, one line, and attempts at intervals until it is back."""
    watched.sample()
    nvml.unload_driver()

    shown = [watched.sample() for _ in range(20)]
    attempts = watched.failures()["driver_not_loaded"]
    nvml.load_driver()

    assert shown == [[]] * 20
    assert watched.watch.readings().timestamp == 1.7e9
    assert watched.watch.readings().stalled is None
    assert 2 <= attempts <= 4
    assert len(logs.records) == 1
    assert watched.sample(RETRY_SECONDS) == ["0", "1"]


def test_a_lost_gpu_vanishes_alone_and_comes_back(
    nvml: Control, watched: Watched, logs: pytest.LogCaptureFixture
) -> None:
    """Its Xid stays to be seen; it is asked again only after a while, by NVML anew."""
    watched.sample()
    watched.sample(2 * RETRY_SECONDS)
    nvml.xid(0, 79)
    nvml.lose(0)

    shown = [watched.sample() for _ in range(3)]
    lost = watched.watch.readings().gpus[0]
    asked = nvml.calls("nvmlDeviceGetPowerUsage")

    assert shown == [["1"]] * 3
    assert (lost.gpu, lost.lost, lost.power_watts, lost.utilization) == ("0", True, None, None)
    assert lost.xids["79"] == 1.0
    assert watched.failures() == {"gpu_lost": 1.0}
    assert watched.sample(RETRY_SECONDS) == ["1"]
    assert watched.failures() == {"gpu_lost": 2.0}
    assert nvml.calls("nvmlDeviceGetPowerUsage") == asked + 1
    nvml.find(0)
    assert watched.sample() == ["1"]
    assert watched.sample(RETRY_SECONDS) == ["0", "1"]
    assert watched.watch.readings().gpus[0].xids["79"] == 1.0
    assert [record.levelname for record in logs.records] == ["WARNING", "INFO"]


def test_the_gpu_behind_a_lost_one_is_not_taken_for_it(nvml: Control, clock: Clock) -> None:
    """The driver may count anew, CUDA's numbers hold for the life of the process."""
    watched = Watched(clock, "mine", environ={"CUDA_VISIBLE_DEVICES": "0"})
    watched.sample()
    gone, other = nvml.gpu(0), nvml.gpu(1)
    gone.uuid, gone.name = other.uuid, other.name
    nvml.gpu_count = 1
    nvml.load_driver()
    watched.sample()

    assert watched.sample() == []
    assert [gpu.lost for gpu in watched.watch.readings().gpus] == [True]
    watched.watch._drop_driver()


def test_a_sensor_that_fails_is_told_once(
    nvml: Control, watched: Watched, logs: pytest.LogCaptureFixture
) -> None:
    """All else goes on."""
    nvml.fail("nvmlDeviceGetPowerUsage", pynvml.NVML_ERROR_UNKNOWN, gpu=1)

    for _ in range(3):
        assert watched.sample() == ["0", "1"]

    assert watched.watch.readings().gpus[1].power_watts is None
    assert watched.watch.readings().gpus[0].power_watts == 200.0
    assert watched.failures() == {"other": 1.0}
    assert len(logs.records) == 1
    assert "power of GPU 1" in logs.text


class Broken:
    """A driver with an error that nobody thought of."""

    devices = ()

    def __init__(self, *_: object, **__: object) -> None:
        raise ZeroDivisionError("planted")


def test_an_unexpected_error_is_logged_once_and_counted(
    clock: Clock, logs: pytest.LogCaptureFixture
) -> None:
    """The thread goes on."""
    watched = Watched(clock, open_driver=Broken)

    for _ in range(3):
        assert watched.sample(RETRY_SECONDS) == []

    assert watched.errors == 3
    assert len(logs.records) == 1
    assert "ZeroDivisionError: planted" in logs.text


def test_old_values_do_not_outlive_an_unexpected_error(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU that is not read is not shown."""
    watched.sample()
    monkeypatch.setattr(watched.own, "choose", None)

    assert watched.sample() == []
    assert watched.errors == 1


def test_not_knowing_which_gpu_is_ours_is_said_once(
    nvml: Control, clock: Clock, logs: pytest.LogCaptureFixture
) -> None:
    """After some patience, as CUDA comes into use late; with what to do about it."""
    watched = Watched(clock, "mine")

    assert watched.sample(0) == []
    watched.sample(PATIENCE_SECONDS - 1)
    assert logs.records == []
    watched.sample()
    watched.sample()

    assert len(logs.records) == 1
    assert logs.records[0].levelname == "INFO"
    assert 'gpus="all"' in logs.text
    assert watched.watch.readings().timestamp is None
    watched.watch._drop_driver()


def test_a_process_that_the_driver_sees_is_found(nvml: Control, clock: Clock) -> None:
    """Without torch and without a choice; the driver is then not asked on each sample."""
    import os

    watched = Watched(clock, "mine")
    assert watched.sample() == []
    nvml.gpu(1).process_count = 1
    nvml.gpu(1).processes[0].pid = os.getpid()

    assert watched.sample() == ["1"]
    asked = nvml.calls("nvmlDeviceGetComputeRunningProcesses_v3")
    assert watched.sample() == ["1"]
    assert nvml.calls("nvmlDeviceGetComputeRunningProcesses_v3") == asked
    nvml.gpu(1).process_count = 0
    assert watched.sample(PATIENCE_SECONDS) == []
    watched.watch._drop_driver()


def test_processor_time_is_counted(nvml: Control, clock: Clock) -> None:
    """Each sample's, in seconds."""
    costs: list[float] = []
    watched = Watched(clock, on_cost=costs.append)
    watched.sample()
    watched.sample()
    watched.watch._drop_driver()

    assert len(costs) == 2
    assert all(0 < cost < 1 for cost in costs)
