# SPDX-License-Identifier: Apache-2.0
"""The sampler's thread, and what others see when it hangs in the driver."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from time import monotonic, perf_counter
from types import FrameType
from typing import NoReturn

import pynvml
import pytest

from training_exporter.demo.stand_in_nvml import Control
from training_exporter.gpu.calls import INIT_STALL_SECONDS, STALL_SECONDS
from training_exporter.gpu.errors import DriverUnavailableError
from training_exporter.gpu.own import OwnGpus
from training_exporter.gpu.readings import GpuReadings
from training_exporter.gpu.sampler import CLOSE_SECONDS, GpuSampler
from training_exporter.gpu.watch import GpuWatch, Plan

NAME = "training-exporter-gpu"


class Clock:
    """Goes on as a test wants it, from the thread's point of view too."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def wait_until(condition: Callable[[], object]) -> None:
    """Give the other threads time, not more than some seconds."""
    until, pause = monotonic() + 10, threading.Event()
    while not condition():
        assert monotonic() < until
        pause.wait(0.001)


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == NAME]


@pytest.fixture
def clock() -> Clock:
    return Clock()


def new_sampler(clock: Clock | None = None, interval: float = 0.001) -> GpuSampler:
    def new_watch() -> GpuWatch:
        own = OwnGpus("all", tuple, {}, lambda used: None)
        return GpuWatch(Plan("all", interval), own, clock=clock or monotonic)

    return GpuSampler(new_watch)


@pytest.fixture
def sampler(nvml: Control, clock: Clock) -> Iterator[GpuSampler]:
    sampler = new_sampler(clock)
    yield sampler
    nvml.release()
    sampler.close()
    wait_until(lambda: not threads())


def test_it_samples_from_start_to_close(nvml: Control, sampler: GpuSampler) -> None:
    """Before and afterwards nothing is shown; NVML is given back; it may be started again."""
    assert sampler.source() == GpuReadings()
    for _ in range(2):
        sampler.start()
        sampler.start()
        wait_until(lambda: sampler.source().gpus)
        assert [thread.daemon for thread in threads()] == [True]
        sampler.close()
        assert not threads()
        assert sampler.source() == GpuReadings()

    assert nvml.calls("nvmlInitWithFlags") == nvml.calls("nvmlShutdown") == 2


@pytest.fixture
def hanging(nvml: Control, sampler: GpuSampler, clock: Clock) -> GpuSampler:
    """A sampler that has seen GPUs, and now sits in a call for longer than is allowed."""
    sampler.start()
    wait_until(lambda: sampler.source().gpus)
    nvml.hang("nvmlDeviceGetPowerUsage")
    wait_until(lambda: nvml.hanging)
    assert not sampler.source().stalled
    clock.now += STALL_SECONDS + 0.1
    return sampler


def test_a_hanging_driver_is_seen_and_old_values_are_not(
    hanging: GpuSampler, logs: pytest.LogCaptureFixture
) -> None:
    """At once, from any thread, however often it is asked; told once and counted once."""
    for _ in range(3):
        readings = hanging.source()
        assert readings.stalled
        assert readings.gpus == ()
        assert readings.failures["driver_stalled"] == 1.0
        assert readings.timestamp is not None

    assert [record.levelname for record in logs.records] == ["WARNING"]
    assert "does not answer" in logs.text


def test_a_driver_that_comes_back(
    nvml: Control, hanging: GpuSampler, logs: pytest.LogCaptureFixture
) -> None:
    """Sampling goes on, and the stall stays counted."""
    hanging.source()
    nvml.release()
    wait_until(lambda: hanging.source().gpus)

    assert hanging.source().stalled is False
    assert hanging.source().failures["driver_stalled"] == 1.0
    wait_until(lambda: len(logs.records) == 2)
    assert "answers again" in logs.text


@pytest.mark.alone
def test_close_does_not_wait_for_a_hanging_driver(hanging: GpuSampler) -> None:
    """Nor does whoever calls it."""
    started = perf_counter()
    hanging.close()

    assert perf_counter() - started < 0.1
    assert hanging.source() == GpuReadings()


@pytest.mark.alone
def test_close_waits_but_briefly_for_a_call_in_progress(nvml: Control, sampler: GpuSampler) -> None:
    """It may be about to hang."""
    nvml.hang("nvmlDeviceGetPowerUsage")
    sampler.start()
    wait_until(lambda: nvml.hanging)
    started = perf_counter()
    sampler.close()

    assert perf_counter() - started < CLOSE_SECONDS + 0.3


def test_a_new_start_while_the_old_thread_hangs(nvml: Control, hanging: GpuSampler) -> None:
    """The old one ends when it returns, and writes nothing that is shown."""
    hanging.close()
    hanging.start()
    nvml.release()
    wait_until(lambda: hanging.source().gpus)
    wait_until(lambda: len(threads()) == 1)

    assert hanging.source().failures["driver_stalled"] == 0.0


def test_initialising_may_take_longer(nvml: Control, sampler: GpuSampler, clock: Clock) -> None:
    """It wakes up GPUs; but not for ever."""
    nvml.hang("nvmlInitWithFlags")
    sampler.start()
    wait_until(lambda: nvml.hanging)

    clock.now += INIT_STALL_SECONDS - 1
    early = sampler.source()
    clock.now += 2

    assert early == GpuReadings()
    assert sampler.source().stalled


def test_a_sampler_that_is_dropped_takes_its_thread_along(nvml: Control) -> None:
    """Also while something still holds the source of its readings."""
    sampler = new_sampler()
    source = sampler.source
    sampler.start()
    wait_until(lambda: source().gpus)
    del sampler
    gc.collect()

    assert source() == GpuReadings()
    wait_until(lambda: not threads())


@pytest.mark.alone
def test_dropping_a_sampler_waits_for_nothing(nvml: Control) -> None:
    """The garbage collector does it, on whatever thread it runs."""
    sampler = new_sampler()
    nvml.hang("nvmlDeviceGetPowerUsage")
    sampler.start()
    wait_until(lambda: nvml.hanging)
    started = perf_counter()
    del sampler

    assert perf_counter() - started < CLOSE_SECONDS / 2
    nvml.release()
    wait_until(lambda: not threads())


def test_many_starts_leave_nothing_behind(sampler: GpuSampler) -> None:
    """Of a sampler that lives as long as a notebook."""
    for _ in range(3):
        sampler.start()
        sampler.close()
    ours = [each for each in weakref.finalize._registry if (each.peek() or [None])[0] is sampler]

    assert len(ours) == 1


@pytest.mark.parametrize("moment", range(1, 30))
def test_it_can_be_stopped_at_any_moment(clock: Clock, moment: int) -> None:
    """By the garbage collector too, which may run in the thread itself between any two calls, with
    all the locks that it holds there."""
    seen: list[str] = []
    sampled: list[float] = []

    def profile(frame: FrameType, event: str, argument: object) -> None:
        if sampled:
            seen.append(event)
            if len(seen) == moment:
                watch.stop()

    def body() -> None:
        sys.setprofile(profile)
        try:
            watch.run()
        finally:
            sys.setprofile(None)

    own = OwnGpus("all", tuple, {}, lambda used: None)
    watch = GpuWatch(Plan("all", 0.001), own, on_cost=sampled.append, open_driver=no_driver)
    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    thread.join(5)

    assert not thread.is_alive()


def no_driver(*arguments: object, **options: object) -> NoReturn:
    raise DriverUnavailableError("there is none")


def test_two_samplers_do_not_disturb_each_other(nvml: Control, sampler: GpuSampler) -> None:
    """NVML counts who uses it."""
    other = new_sampler()
    sampler.start()
    other.start()
    wait_until(lambda: sampler.source().gpus and other.source().gpus)
    other.close()
    seen = nvml.calls("nvmlDeviceGetPowerUsage")
    wait_until(lambda: nvml.calls("nvmlDeviceGetPowerUsage") > seen + 4)

    assert sampler.source().gpus


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_has_no_sampler(hanging: GpuSampler) -> None:
    """It neither waits for the driver nor reports that it hangs; it may have a sampler anew."""
    child = os.fork()
    if child == 0:
        clean = hanging.source() == GpuReadings()
        hanging.close()
        os._exit(0 if clean else 1)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert hanging.source().stalled


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_in_the_middle_of_a_call(hanging: GpuSampler) -> None:
    """pynvml's lock is held for ever in the child then: its sampler's thread gets nowhere, and
    everything else goes on."""
    with pynvml.libLoadLock:
        child = os.fork()
        if child == 0:
            signal.alarm(20)  # ends it where it hangs
            pynvml._nvmlGetFunctionPointer_cache.clear()
            hanging.start()
            clean = hanging.source() == GpuReadings()
            hanging.close()
            del hanging
            os._exit(0 if clean else 1)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
