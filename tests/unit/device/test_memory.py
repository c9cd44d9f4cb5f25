# SPDX-License-Identifier: Apache-2.0
"""What torch's allocator says, from a torch that says what the test wants."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from training_exporter.device.memory import AllocatorWatch
from training_exporter.gpu.readings import AllocatorReading

GIB = 2**30


class Allocator:
    """torch.cuda of a process with these counters by device."""

    OutOfMemoryError = torch.OutOfMemoryError

    def __init__(self, devices: int = 1, backend: str = "native") -> None:
        self.initialized = True
        self.backend = backend
        self.current = 0
        self.calls: list[int] = []
        self.counters = {device: counters() for device in range(devices)}
        self.fails: Exception | None = None

    def is_initialized(self) -> bool:
        return self.initialized

    def get_allocator_backend(self) -> str:
        return self.backend

    def current_device(self) -> int:
        assert self.initialized, "this would initialise CUDA"
        return self.current

    def device_count(self) -> int:
        return len(self.counters)

    def memory_stats_as_nested_dict(self, device: int) -> dict[str, Any]:
        self.calls.append(device)
        if self.fails is not None:
            raise self.fails
        return self.counters[device]

    def get_device_properties(self, device: int) -> Any:
        assert self.counters[device]["reserved_bytes"], "only of those in use"
        return SimpleNamespace(total_memory=80 * GIB + device)


def counters(
    allocated: int = 0, reserved: int = 0, *, retries: int = 0, ooms: int = 0
) -> dict[str, Any]:
    """The counters of one device, shaped like torch's: pools apart, and their sum."""

    def pools(current: int, peak: int) -> dict[str, dict[str, int]]:
        sums = {"current": current, "peak": peak, "allocated": 10 * peak, "freed": 9 * peak}
        return {"all": sums, "small_pool": dict.fromkeys(sums, 7), "large_pool": {}}

    return {
        "allocated_bytes": pools(allocated, 2 * allocated),
        "reserved_bytes": pools(reserved, 3 * reserved),
        "inactive_split_bytes": pools(reserved // 4, reserved),
        "num_alloc_retries": retries,
        "num_ooms": ooms,
    }


class Clock:
    """Time passes when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def watch(clock: Clock) -> AllocatorWatch:
    return AllocatorWatch(others_seconds=5.0, clock=clock)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Allocator:
    """A process that uses one of two devices."""
    return installed(monkeypatch, Allocator(devices=2))


def installed(monkeypatch: pytest.MonkeyPatch, allocator: Allocator) -> Allocator:
    allocator.counters[0] = counters(3 * GIB, 4 * GIB)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=allocator))
    return allocator


def test_without_cuda_there_is_nothing(watch: AllocatorWatch) -> None:
    """Nothing is read, and CUDA is not initialised to find out."""
    assert not torch.cuda.is_initialized()
    assert watch.read() == watch.read_at_the_end(None) == ()
    assert watch.read_at_the_end(torch.OutOfMemoryError()) == ()
    assert not torch.cuda.is_initialized()


def test_cuda_that_is_not_used_yet_is_not_asked(cuda: Allocator, watch: AllocatorWatch) -> None:
    """And as soon as it is used it is."""
    cuda.initialized = False
    cuda.calls.clear()
    assert watch.read() == ()
    assert cuda.calls == []
    cuda.initialized = True
    assert watch.read() != ()


def test_without_torch_there_is_nothing(
    monkeypatch: pytest.MonkeyPatch, watch: AllocatorWatch
) -> None:
    """And torch is not imported to find out."""
    monkeypatch.delitem(sys.modules, "torch")

    assert watch.read() == watch.read_at_the_end(None) == ()
    assert "torch" not in sys.modules


def test_every_number_is_its_own(cuda: Allocator, watch: AllocatorWatch) -> None:
    """Over all pools; now and at most; with the counts at 0."""
    assert watch.read() == (
        AllocatorReading(
            device=0,
            allocated_bytes=3 * GIB,
            allocated_peak_bytes=6 * GIB,
            reserved_bytes=4 * GIB,
            reserved_peak_bytes=12 * GIB,
            inactive_split_bytes=1 * GIB,
            total_bytes=80 * GIB,
            retries=0,
            out_of_memory=0,
        ),
    )


def test_each_step_costs_one_call(cuda: Allocator, watch: AllocatorWatch, clock: Clock) -> None:
    """The device of the training is read on each step, the others every few seconds."""
    cuda.counters[1] = counters(1, 2)
    watch.read()
    cuda.calls.clear()
    for _ in range(4):
        clock.now += 1.0
        watch.read()
    assert cuda.calls == [0, 0, 0, 0]
    cuda.counters[0] = counters(5, 6)
    cuda.counters[1] = counters(7, 8)
    between = watch.read()
    assert [reading.allocated_bytes for reading in between] == [5, 1]
    clock.now += 1.0
    assert [reading.allocated_bytes for reading in watch.read()] == [5, 7]
    assert [reading.total_bytes for reading in between] == [80 * GIB, 80 * GIB + 1]


def test_a_device_without_memory_of_ours_is_not_shown(
    cuda: Allocator, watch: AllocatorWatch, clock: Clock
) -> None:
    """From the first tensor on it is, and stays when its cache is emptied and its peak reset."""
    assert [reading.device for reading in watch.read()] == [0]
    for held in (2, 0):
        cuda.counters[1] = counters(held, held, retries=3)
        clock.now += 5.0
        assert [reading.device for reading in watch.read()] == [0, 1]
    assert watch.read()[1].retries == 3


def test_the_device_of_the_training_comes_first(
    cuda: Allocator, watch: AllocatorWatch, clock: Clock
) -> None:
    """It is the current one; but where that holds nothing, the one that holds most, and it stays
    the same, since its numbers are compared from step to step."""
    cuda.counters = {0: counters(), 1: counters(1, 2), 2: counters(2, 3)}
    assert [reading.device for reading in watch.read()] == [2, 1]
    cuda.counters[1] = counters(9, 9)
    clock.now += 5.0
    assert [reading.device for reading in watch.read()] == [2, 1]
    cuda.current = 1
    clock.now += 5.0
    assert [reading.device for reading in watch.read()] == [1, 2]


def test_the_end_is_read_afresh(cuda: Allocator, watch: AllocatorWatch) -> None:
    """All devices, whenever they were read last."""
    watch.read()
    cuda.counters = {0: counters(1, 1), 1: counters(2, 2)}
    assert [r.allocated_bytes for r in watch.read_at_the_end(None)] == [1, 2]


def raised_from(cause: Exception) -> Exception:
    """As DataLoaders and launchers pass an error on."""
    error = RuntimeError("in rank 0")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize("wrap", [lambda error: error, raised_from])
def test_running_out_of_memory_is_seen(cuda: Allocator, watch: AllocatorWatch, wrap: Any) -> None:
    """Though the step it happened in never ends, and be it the first."""
    for device in (0, 1):
        cuda.counters[device] = counters(0, 0, retries=1, ooms=1)
        (reading,) = watch.read_at_the_end(wrap(torch.OutOfMemoryError()))[device:]
        assert (reading.device, reading.retries, reading.out_of_memory) == (device, 1, 1)


@pytest.mark.parametrize("error", [RuntimeError("NCCL timeout"), KeyboardInterrupt()])
def test_after_any_other_error_the_allocator_is_left_alone(
    cuda: Allocator, watch: AllocatorWatch, error: BaseException
) -> None:
    """A thread may hang in the driver with its lock; the last step's reading stands."""
    before = watch.read()
    cuda.calls.clear()
    cuda.counters[0] = counters(1, 1)
    assert watch.read_at_the_end(error) == before
    assert cuda.calls == []


def test_the_driver_s_own_allocator_counts_less(
    monkeypatch: pytest.MonkeyPatch, watch: AllocatorWatch
) -> None:
    """Its zeros are not passed on as counts, and no device is asked but the current one."""
    cuda = installed(monkeypatch, Allocator(devices=3, backend="cudaMallocAsync"))
    (reading,) = watch.read()
    assert (reading.allocated_bytes, reading.reserved_bytes) == (3 * GIB, 4 * GIB)
    assert reading[5] is reading.retries is reading.out_of_memory is None
    assert watch.read()[0].retries is None
    assert watch.read_at_the_end(None) == (reading,)
    assert set(cuda.calls) == {0}


def test_a_plugged_in_allocator_is_not_asked(
    monkeypatch: pytest.MonkeyPatch, watch: AllocatorWatch
) -> None:
    """It raises when it is."""
    cuda = installed(monkeypatch, Allocator(backend="pluggable"))
    assert watch.read() == watch.read_at_the_end(None) == ()
    assert cuda.calls == []


def test_what_raises_is_not_asked_on_each_step(
    cuda: Allocator, watch: AllocatorWatch, clock: Clock
) -> None:
    """The error goes up to the boundary, and comes back no sooner than the next look around."""
    cuda.fails = RuntimeError("no counters")
    for _ in range(2):
        with pytest.raises(RuntimeError):
            watch.read()
        assert watch.read() == ()
        clock.now += 5.0
