# SPDX-License-Identifier: Apache-2.0
"""Phases on a real GPU, under torch's own alarm for everything that waits."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from training_exporter.catalog import FORWARD_BACKWARD, OPTIMIZER
from training_exporter.device.phases import EventMarks, open_phases
from training_exporter.gpu.peaks import peak_flops
from training_exporter.timing.phases import EXPORTER, PhaseClock

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

MILLION = 1_000_000
"""Clock cycles of the device that `_sleep` takes."""


@contextmanager
def no_waiting() -> Iterator[None]:
    """Any operation that makes the host wait for the device raises."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def cycles_per_second() -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(MILLION)
    start.record()
    torch.cuda._sleep(200 * MILLION)
    end.record()
    end.synchronize()
    return 200 * MILLION / (start.elapsed_time(end) / 1e3)


def test_times_are_the_device_s() -> None:
    """Known work, queued far ahead: each phase has its own, and the host has waited for nothing."""
    second = cycles_per_second()
    phases = open_phases(torch.device("cuda"))
    torch.cuda.synchronize()
    began = time.perf_counter()
    with no_waiting():
        for _ in range(2):
            with phases.inside(FORWARD_BACKWARD):
                torch.cuda._sleep(int(0.1 * second))
            torch.cuda._sleep(int(0.05 * second))
        phases.begin(OPTIMIZER)
        torch.cuda._sleep(int(0.03 * second))
        with phases.inside(EXPORTER):
            torch.cuda._sleep(int(0.02 * second))
        phases.lap(1)
        early = phases.completed()
    launched = time.perf_counter() - began
    (times,) = phases.flush()

    assert early == []
    assert launched < 0.1
    assert times.step == 1
    assert times.seconds[FORWARD_BACKWARD] == pytest.approx(0.2, rel=0.1)
    assert times.seconds[OPTIMIZER] == pytest.approx(0.03, rel=0.1)
    assert times.seconds[EXPORTER] == pytest.approx(0.02, rel=0.1)


def test_a_training_run_is_timed_without_waiting() -> None:
    """All steps arrive but the last few, and forward and backward outweigh the optimiser."""
    phases = open_phases(torch.device("cuda"))
    model = torch.nn.Linear(2048, 2048, device="cuda")
    optimizer = torch.optim.AdamW(model.parameters())
    inputs = torch.randn(16384, 2048, device="cuda")
    seen = []
    with no_waiting():
        for step in range(50):
            with phases.inside(FORWARD_BACKWARD):
                model(inputs).square().mean().backward()
            phases.begin(OPTIMIZER)
            optimizer.step()
            optimizer.zero_grad()
            phases.lap(step)
            seen += phases.completed()
    seen += phases.flush()

    assert [times.step for times in seen] == list(range(50))
    assert phases.dropped == 0
    late = seen[10:]
    assert all(times.seconds[FORWARD_BACKWARD] > times.seconds[OPTIMIZER] > 0 for times in late)


def test_an_empty_pool_drops_and_waits_for_nothing() -> None:
    """While the device sleeps marks run out; afterwards there are as many as before."""
    phases = PhaseClock(EventMarks(torch.device("cuda"), limit=4))
    with no_waiting():
        torch.cuda._sleep(2_000 * MILLION)
        for step in range(1, 6):
            with phases.inside(FORWARD_BACKWARD):
                torch.cuda._sleep(MILLION)
            phases.lap(step)
        early = phases.completed()
    late = phases.flush()
    with phases.inside(FORWARD_BACKWARD):
        torch.cuda._sleep(MILLION)
    phases.lap(6)

    assert early == []
    assert [times.step for times in late + phases.flush()] == [1, 2, 6]
    assert phases.dropped == 3


def test_a_graph_may_be_captured_around_us() -> None:
    """The capturing step has no times, and its replays have those of the device."""
    phases = open_phases(torch.device("cuda"))
    source = torch.ones(4096, 4096, device="cuda")
    source @ source
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), phases.inside(FORWARD_BACKWARD):
        source @ source
    phases.lap(0)
    for step in range(1, 4):
        with phases.inside(FORWARD_BACKWARD):
            graph.replay()
        phases.lap(step)
    seen = phases.flush()

    assert [times.step for times in seen] == [1, 2, 3]
    assert phases.dropped == 1
    assert all(times.seconds[FORWARD_BACKWARD] > 1e-5 for times in seen)


def test_work_that_another_stream_waits_for_is_seen() -> None:
    """A phase that works on a side stream lasts until the current one has waited for it."""
    second = cycles_per_second()
    phases = open_phases(torch.device("cuda"))
    side = torch.cuda.Stream()
    with phases.inside(FORWARD_BACKWARD):
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            torch.cuda._sleep(int(0.1 * second))
        torch.cuda.current_stream().wait_stream(side)
    phases.lap(1)

    assert phases.flush()[0].seconds[FORWARD_BACKWARD] == pytest.approx(0.1, rel=0.1)


def test_marking_costs_microseconds() -> None:
    """The six marks of a step with everything, and reading them."""
    phases = open_phases(torch.device("cuda"))

    def step(number: int) -> None:
        with phases.inside(FORWARD_BACKWARD):
            pass
        phases.begin(OPTIMIZER)
        with phases.inside(EXPORTER):
            pass
        phases.lap(number)
        phases.completed()

    for number in range(100):
        step(number)
    began = time.perf_counter()
    for number in range(1000):
        step(number)
    cost = (time.perf_counter() - began) / 1000

    print(f"{cost * 1e6:.1f} us a step")
    assert cost < 200e-6


def test_no_matrix_product_is_faster_than_the_peak() -> None:
    """Big products in bfloat16 reach a good part of the table's number, and never more."""
    peak = peak_flops(torch.cuda.get_device_name(), "bf16")
    if peak is None:
        pytest.skip(f"no peak is known for {torch.cuda.get_device_name()}")
    phases = open_phases(torch.device("cuda"))
    matrix = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    for step in range(20):
        with phases.inside(FORWARD_BACKWARD):
            for _ in range(4):
                matrix @ matrix
        phases.lap(step)
    best = min(times.seconds[FORWARD_BACKWARD] for times in phases.flush())

    assert 0.4 < 4 * 2 * 8192**3 / best / peak < 1.05
