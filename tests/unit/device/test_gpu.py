# SPDX-License-Identifier: Apache-2.0
"""On a real GPU, under torch's own alarm for everything that waits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import isnan, nan
from urllib.request import urlopen

import pytest
import torch
from torch import nn

from tests.unit.integrations import test_torch_loop
from training_exporter import TrainingExporter
from training_exporter.device.gradients import global_norm
from training_exporter.device.memory import AllocatorWatch
from training_exporter.device.recorder import StepRecorder
from training_exporter.gpu.readings import AllocatorReading
from training_exporter.integrations.torch_loop import TorchLoop

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@contextmanager
def no_waiting() -> Iterator[None]:
    """Any operation that makes the host wait for the device raises."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


class Exporter(test_torch_loop.Exporter):
    """Keeps what the allocator says, too."""

    memory: tuple[AllocatorReading, ...] = ()

    def observe_memory(self, readings: tuple[AllocatorReading, ...]) -> None:
        self.memory = readings


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_training_run_waits_for_nothing(dtype: torch.dtype) -> None:
    """Losses, norms, rates and tokens of a real loop equal what `item()` says afterwards."""
    exporter = Exporter()
    loop = TorchLoop(exporter)
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 8)).to("cuda", dtype)
    rate = torch.tensor(1e-3, device="cuda")
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, capturable=True)
    losses, norms = [], []
    with no_waiting():
        for _ in range(20):
            optimizer.zero_grad()
            total = torch.zeros((), device="cuda", dtype=torch.float64)
            for _ in range(2):
                loss = model(torch.randn(16, 32, device="cuda", dtype=dtype)).square().mean()
                loss.backward()
                total += loss.detach()
                loop.add_micro_batch(loss=loss, tokens=torch.full((), 2**24 + 1, device="cuda"))
            norms.append(loop.clip_grad_norm_(model.parameters(), 0.1).clone())
            losses.append(total)
            optimizer.step()
            loop.step(learning_rate=optimizer)
    loop.finish()

    assert [signals.step for signals in exporter.seen] == list(range(1, 21))
    assert [signals.loss for signals in exporter.seen] == [loss.item() for loss in losses]
    assert [signals.grad_norm for signals in exporter.seen] == [norm.item() for norm in norms]
    assert {signals.tokens for signals in exporter.seen} == {2**25 + 2}
    assert exporter.seen[-1].learning_rates["0"] == pytest.approx(1e-3)
    assert (exporter.seen[-1].memory_allocated_bytes or 0) > 0
    assert exporter.memory[0].allocated_bytes == exporter.seen[-1].memory_allocated_bytes
    assert exporter.dropped == 0


def test_non_finite_and_mixed_values() -> None:
    """A NaN on the device stays one, and host parts are added to device parts."""
    recorder = StepRecorder()
    with no_waiting():
        recorder.add_loss(torch.full((), nan, device="cuda", dtype=torch.float16))
        recorder.set_grad_norm(torch.full((1,), 2.5, device="cuda"))
        recorder.add_tokens(torch.full((), 3, device="cuda"))
        recorder.add_tokens(torch.tensor(4))
        recorder.add_tokens(5)
        recorder.finish(step=1, timestamp=0.0)

    (signals,) = recorder.flush()

    assert isnan(signals.loss or 0.0)
    assert (signals.grad_norm, signals.tokens) == (2.5, 12.0)


def test_a_busy_device_is_not_waited_for() -> None:
    """While it sleeps steps pile up and then drop; afterwards the ones in the ring arrive."""
    recorder = StepRecorder(slots=4)
    value = torch.ones((), device="cuda")
    recorder.add_loss(value)
    recorder.finish(step=0, timestamp=0.0)
    recorder.flush()
    with no_waiting():
        torch.cuda._sleep(2_000_000_000)  # about a second of device time, and none of the host's
        for step in range(1, 11):
            recorder.add_loss(value)
            recorder.finish(step=step, timestamp=0.0)
            assert recorder.completed() == []

    assert recorder.dropped == 6
    assert [(s.step, s.loss) for s in recorder.flush()] == [(n, 1.0) for n in (1, 2, 3, 4)]


def test_a_graph_may_be_captured_around_us() -> None:
    """Clipping inside a captured step records nothing and does not break the capture."""
    exporter = Exporter()
    loop = TorchLoop(exporter)
    weight = nn.Parameter(torch.ones(4, device="cuda"))
    weight.grad = torch.ones(4, device="cuda")
    loop.step(loss=weight.sum())
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        nn.utils.clip_grad_norm_([weight], 1.0)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loop.clip_grad_norm_([weight], 1.0)
    for _ in range(3):
        graph.replay()
        loop.step(loss=weight.sum())
    loop.finish()

    assert [signals.loss for signals in exporter.seen] == [4.0] * 4
    assert [signals.grad_norm for signals in exporter.seen] == [None] * 4


def test_a_graph_may_be_captured_before_anything_else() -> None:
    """The first value ever seen, in a capture, makes no rows, which would break that."""
    recorder = StepRecorder()
    source = torch.zeros((), device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorder.add_loss(source * 2)
    recorder.finish(step=0, timestamp=0.0)
    recorder.add_loss(source + 1)
    recorder.finish(step=1, timestamp=0.0)

    assert [signals.loss for signals in recorder.flush()] == [None, 1.0]


def test_a_replayed_loss_is_read_at_once() -> None:
    """The loss of a captured step lies in memory that each replay overwrites."""
    recorder = StepRecorder()
    source = torch.zeros((), device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = source * 2
    for step in range(5):
        source.fill_(step)
        graph.replay()
        recorder.add_loss(loss)
        recorder.finish(step=step, timestamp=0.0)

    assert [signals.loss for signals in recorder.flush()] == [0.0, 2.0, 4.0, 6.0, 8.0]


def test_the_norm_waits_for_nothing() -> None:
    """Mixed dtypes, and a gradient on the CPU next to those on the device."""
    parameters = []
    for device, dtype in (("cuda", torch.float32), ("cuda", torch.float16), ("cpu", torch.float32)):
        parameters.append(nn.Parameter(torch.zeros(1, device=device, dtype=dtype)))
        parameters[-1].grad = torch.full((1,), 2.0, device=device, dtype=dtype)
    with no_waiting():
        norm = global_norm(parameters)

    assert norm is not None
    assert norm.item() == pytest.approx(12.0**0.5)


def test_uncoalesced_sparse_gradients_have_no_norm_on_a_device() -> None:
    """Summing them up would wait, and their norm without that would be wrong."""
    embedding = nn.Embedding(10, 2, sparse=True, device="cuda")
    embedding(torch.tensor([1, 1], device="cuda")).sum().backward()
    with no_waiting():
        norm = global_norm(embedding.parameters())

    assert norm is None


def test_a_step_with_everything_on_waits_for_nothing() -> None:
    """The whole exporter: detectors, allocator, the driver's readings, and somebody who looks."""
    model = nn.Linear(64, 64, device="cuda")
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with TrainingExporter(address="127.0.0.1", port=0) as exporter:
        assert exporter.url is not None
        with no_waiting():
            for _ in range(10):
                loss = model(torch.ones(8, 64, device="cuda")).square().mean()
                loss.backward()
                exporter.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                exporter.step(loss=loss.detach(), learning_rate=optimizer, tokens=8)
                optimizer.zero_grad()
                with urlopen(f"{exporter.url}/metrics", timeout=10) as page:
                    shown = page.read().decode()
    exporter.close()

    assert "training_cuda_memory_allocated_bytes{" in shown
    assert sum(exporter.health.errors.values()) == 0
    assert exporter.snapshot.totals.steps == 10


def test_the_allocator_s_numbers_are_torch_s() -> None:
    """Each as torch's own functions have it, after memory came and went."""
    held = torch.ones(3 << 20, device="cuda")
    del held
    held = torch.ones(1 << 20, device="cuda")
    stats = torch.cuda.memory_stats()

    reading = AllocatorWatch().read()[0]

    assert reading == AllocatorReading(
        device=torch.cuda.current_device(),
        allocated_bytes=torch.cuda.memory_allocated(),
        allocated_peak_bytes=torch.cuda.max_memory_allocated(),
        reserved_bytes=torch.cuda.memory_reserved(),
        reserved_peak_bytes=torch.cuda.max_memory_reserved(),
        inactive_split_bytes=stats["inactive_split_bytes.all.current"],
        total_bytes=torch.cuda.get_device_properties("cuda").total_memory,
        retries=stats["num_alloc_retries"],
        out_of_memory=stats["num_ooms"],
    )
    assert held.nbytes <= (reading.allocated_bytes or 0) < (reading.allocated_peak_bytes or 0)


def test_reading_resets_no_peak() -> None:
    """The peaks are the user's."""
    torch.ones(5 << 20, device="cuda")
    peaks = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    watch = AllocatorWatch()
    watch.read()
    watch.read_at_the_end(None)

    assert (torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()) == peaks


def test_running_out_of_memory_is_counted() -> None:
    """The attempt to empty the cache first, then the error; both are on the crashed run's page."""
    before = AllocatorWatch().read_at_the_end(None)
    exporter = TrainingExporter(serve=False)
    total = torch.cuda.get_device_properties("cuda").total_memory
    with pytest.raises(torch.OutOfMemoryError), exporter:
        torch.empty(2 * total, dtype=torch.uint8, device="cuda")

    reading = exporter.memory[0]
    retries, failures = (before[0].retries, before[0].out_of_memory) if before else (0, 0)
    assert (exporter.status.state, exporter.status.failure) == ("crashed", "OutOfMemoryError")
    assert reading.out_of_memory == (failures or 0) + 1
    assert reading.retries == (retries or 0) + 1


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_devices_in_use_are_found_and_no_others_are_touched() -> None:
    """The one with tensors on it is shown; looking puts no context on the last device."""
    held = torch.ones(1 << 20, device="cuda:1")
    last = torch.cuda.device_count() - 1
    had_context = torch._C._cuda_hasPrimaryContext(last)

    shown = {reading.device: reading.allocated_bytes for reading in AllocatorWatch().read()}

    assert (shown[1] or 0) >= held.nbytes
    assert torch._C._cuda_hasPrimaryContext(last) == had_context


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_model_parallel_values_meet_in_one_row() -> None:
    """A loss on one device and a norm on another are one step."""
    recorder = StepRecorder()
    with no_waiting():
        for device in ("cuda:0", "cuda:1"):
            recorder.add_loss(torch.full((), 1.5, device=device))
        recorder.set_grad_norm(torch.full((), 2.0, device="cuda:1"))
        recorder.finish(step=1, timestamp=0.0)

    (signals,) = recorder.flush()

    assert (signals.loss, signals.grad_norm) == (3.0, 2.0)
