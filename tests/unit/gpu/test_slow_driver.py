# SPDX-License-Identifier: Apache-2.0
"""A driver that answers late: from when on that is seen, and until when no value is shown."""

from __future__ import annotations

from collections.abc import Callable

import pynvml
import pytest

from tests.unit.gpu.test_watch import Clock, Watched, clock, watched
from training_exporter.demo.stand_in_nvml import Control
from training_exporter.gpu.calls import INIT_STALL_SECONDS, STALL_SECONDS, CallWatch
from training_exporter.gpu.devices import Device
from training_exporter.gpu.readings import GpuReading

__all__ = ["clock", "watched"]


class Slow:
    """A driver of one GPU that is asked five times for each reading, and whose calls take what a
    test wants. Whenever half a second has passed, and between calls, `look` is called."""

    devices = (Device("0", "GPU-a"),)
    seconds = 0.0

    def __init__(self, calls: CallWatch, *, clock: Clock, look: Callable[[], object]) -> None:
        self.calls = calls
        self.clock = clock
        self.look = look

    def call(self, seconds: float) -> None:
        self.calls.begin()
        for _ in range(int(2 * seconds)):
            self.clock.now += 0.5
            self.look()
        self.calls.end()
        self.look()

    def read(self, device: Device, cuda_device: int | None) -> GpuReading:
        began = self.clock.now
        for _ in range(5):
            self.call(self.seconds)
        return GpuReading(gpu="0", memory_used_bytes=began)

    def has_process(self, device: Device, pid: int) -> bool:
        return True

    def close(self) -> None:
        pass


Look = tuple[float, bool | None, list[float]]


class Looked:
    """A watch of such a driver; after each look: when, whether stalled, and the age of values."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.seen: list[Look] = []
        self.watched = Watched(clock, open_driver=self.opened)
        self.watched.sample()

    def opened(self, calls: CallWatch, **_: object) -> Slow:
        self.driver = Slow(calls, clock=self.clock, look=self.look)
        return self.driver

    def look(self) -> None:
        readings = self.watched.watch.readings()
        ages = [self.clock.now - (gpu.memory_used_bytes or 0.0) for gpu in readings.gpus]
        self.seen.append((self.clock.now, readings.stalled, ages))

    def sample(
        self, seconds: float, times: int = 1
    ) -> list[tuple[float, bool | None, list[float]]]:
        """What was seen during samples whose calls take so long, and in the pauses behind them."""
        self.seen.clear()
        self.driver.seconds = seconds
        for _ in range(times):
            self.watched.watch.sample()
            for _ in range(10):
                self.look()
                self.clock.now += 0.5
        return self.seen[:]


@pytest.fixture
def looked(clock: Clock) -> Looked:
    return Looked(clock)


@pytest.mark.parametrize("seconds", [1.5, 4.0, 8.0])
def test_a_slow_driver_is_a_driver_that_stalls(looked: Looked, seconds: float) -> None:
    """Without a break from the moment at which a sample is late, whether or not a single call is:
    an alert waits for some time of it. No value of then is shown."""
    seen = looked.sample(seconds, times=3)
    started = seen[0][0] - 0.5
    stalled = [when for when, stalls, _ in seen if stalls]

    assert stalled[0] <= started + STALL_SECONDS + 1
    assert stalled == [when for when, *_ in seen if when >= stalled[0]]
    assert stalled[-1] - stalled[0] > 15
    assert all(not ages for when, _, ages in seen if when >= stalled[0])
    assert looked.watched.failures() == {"driver_stalled": 3.0}


def test_after_a_stall_old_values_do_not_come_back(looked: Looked) -> None:
    """When the call returns, and until a whole sample was taken in good time."""
    looked.driver.call(600.0)
    assert looked.seen[-1] == (looked.clock.now, True, [])

    assert [stalls for _, stalls, _ in looked.sample(0.5)[:5]] == [True] * 5
    assert looked.seen[-1][1:] == (False, [looked.seen[-1][0] - looked.seen[0][0] + 0.5])


def test_a_slow_driver_that_recovers(looked: Looked, logs: pytest.LogCaptureFixture) -> None:
    """The sample that was late is not shown; the first that is in time is, and it is said."""
    assert looked.sample(4.0)[-1][1] is True
    assert looked.sample(0.0)[-1][1:] == (False, [4.5])
    assert [record.levelname for record in logs.records] == ["WARNING", "INFO"]
    assert looked.watched.failures() == {"driver_stalled": 1.0}


def test_a_driver_that_is_just_in_time(looked: Looked) -> None:
    """Nothing is hidden, and no value is older than two samples and the pause between them."""
    seen = looked.sample(STALL_SECONDS / 5, times=4)

    assert not any(stalls for _, stalls, _ in seen)
    assert all(ages for _, _, ages in seen)
    assert max(age for _, _, ages in seen for age in ages) <= 5.0 + 2 * STALL_SECONDS


def test_values_that_nobody_renews_are_not_shown(watched: Watched, clock: Clock) -> None:
    """For whatever reason; that is then no fault of the driver's."""
    watched.sample()
    clock.now += 5.0 + 2 * STALL_SECONDS
    assert watched.watch.readings().gpus
    clock.now += 0.1

    assert watched.watch.readings().gpus == ()
    assert watched.watch.readings().stalled is False
    assert watched.watch.readings().timestamp == 1.7e9


@pytest.mark.parametrize(("more", "stalls"), [(-1.0, 0.0), (1.0, 1.0)])
def test_a_session_that_begins_slowly(
    watched: Watched, clock: Clock, monkeypatch: pytest.MonkeyPatch, more: float, stalls: float
) -> None:
    """nvmlInit has its own bound; what is read behind it is fresh and shown at once."""
    begin = pynvml.nvmlInit

    def slowly() -> None:
        clock.now += INIT_STALL_SECONDS + more
        begin()

    monkeypatch.setattr(pynvml, "nvmlInit", slowly)

    assert watched.sample() == ["0", "1"]
    assert watched.watch.readings().stalled is False
    assert watched.watch.readings().failures["driver_stalled"] == stalls


def test_an_error_after_a_stall_ends_it(
    nvml: Control, watched: Watched, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver answers, if only that it is gone, which has its own reason."""
    ask = pynvml.nvmlDeviceGetPowerUsage

    def slowly(gpu: object) -> int:
        clock.now += STALL_SECONDS + 1
        return int(ask(gpu))

    watched.sample()
    monkeypatch.setattr(pynvml, "nvmlDeviceGetPowerUsage", slowly)
    watched.sample()
    assert watched.watch.readings().stalled
    nvml.unload_driver()

    assert watched.sample() == []
    assert watched.watch.readings().stalled is None
    assert watched.failures() == {"driver_stalled": 1.0, "driver_not_loaded": 1.0}
