# SPDX-License-Identifier: Apache-2.0
"""On a real GPU, under torch's own alarm for everything that waits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import isnan, nan

import pytest
import torch
from torch import nn

from training_exporter.boundary import StepBoundary
from training_exporter.device.gradients import global_norm
from training_exporter.device.recorder import StepRecorder
from training_exporter.integrations.torch_loop import TorchLoop
from training_exporter.signals import StepSignals
from training_exporter.status import ExporterHealth

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


class Exporter:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.boundary = StepBoundary(ExporterHealth())
        self.seen: list[StepSignals] = []
        self.dropped = 0

    def observe(self, signals: StepSignals) -> None:
        self.seen.append(signals)

    def count_dropped(self, steps: int, series: int) -> None:
        self.dropped += steps


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
