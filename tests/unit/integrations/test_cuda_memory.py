# SPDX-License-Identifier: Apache-2.0
"""From the allocator to what a person sees, in a loop written by hand."""

from __future__ import annotations

import pytest
import torch

from tests.unit.device.test_memory import Allocator, counters
from training_exporter import TrainingExporter
from training_exporter.device import memory
from training_exporter.device.memory import AllocatorWatch
from training_exporter.gpu.readings import AllocatorReading
from training_exporter.integrations import cuda_memory
from training_exporter.integrations.cuda_memory import MemoryObserver

EARLY, LATE = (AllocatorReading(0, 5.0, out_of_memory=count) for count in (0, 1))


class Watch(AllocatorWatch):
    """Says what it is told to; the real one has its own tests."""

    def __init__(self) -> None:
        super().__init__()
        self.fails: Exception | None = None
        self.readings: tuple[AllocatorReading, ...] = (EARLY,)
        self.last: tuple[AllocatorReading, ...] = ()

    def read(self) -> tuple[AllocatorReading, ...]:
        if self.fails is not None:
            raise self.fails
        self.last = self.readings
        return self.last

    def read_at_the_end(self, error: BaseException | None) -> tuple[AllocatorReading, ...]:
        return self.read() if isinstance(error, torch.OutOfMemoryError) else self.last


@pytest.fixture
def exporter() -> TrainingExporter:
    return TrainingExporter(serve=False)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    """What every loop made in this test asks."""
    watch = Watch()
    monkeypatch.setattr(cuda_memory, "AllocatorWatch", lambda start: watch)
    return watch


def out_of_memory(exporter: TrainingExporter, watch: Watch) -> None:
    """A step that finds no room ends the run."""
    watch.readings = (LATE,)
    with pytest.raises(torch.OutOfMemoryError), exporter:
        raise torch.OutOfMemoryError


def test_a_step_gives_one_reading_to_all(exporter: TrainingExporter, watch: Watch) -> None:
    """The metrics get it whole, the detector the bytes of the training's device."""
    watch.readings = (EARLY, AllocatorReading(1, 9.0))
    exporter.step(loss=1.0)

    assert exporter.memory == watch.readings
    assert exporter.snapshot.signals is not None
    assert exporter.snapshot.signals.memory_allocated_bytes == 5.0


def test_no_reading_is_no_number(exporter: TrainingExporter, watch: Watch) -> None:
    """And takes nothing away from the page."""
    exporter.step(loss=1.0)
    watch.readings = ()
    exporter.step(loss=1.0)

    assert exporter.memory == (EARLY,)
    assert exporter.snapshot.signals is not None
    assert exporter.snapshot.signals.memory_allocated_bytes is None


def test_the_last_step_of_all_is_seen_too(exporter: TrainingExporter, watch: Watch) -> None:
    """An out-of-memory error is on the page together with the crash."""
    exporter.step(loss=1.0)
    out_of_memory(exporter, watch)

    assert exporter.memory == (LATE,)
    assert (exporter.status.state, exporter.status.failure) == ("crashed", "OutOfMemoryError")


def test_even_if_it_was_the_first(exporter: TrainingExporter, watch: Watch) -> None:
    """Which is when most runs find that they have too little memory."""
    out_of_memory(exporter, watch)

    assert exporter.memory == (LATE,)


def test_a_failure_to_read_costs_no_step(
    exporter: TrainingExporter, watch: Watch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged once, counted, and the rest of the step is seen; so is the end of the run."""
    watch.fails = RuntimeError("no counters")
    for _ in range(2):
        exporter.step(loss=1.5)
    error = torch.OutOfMemoryError()
    MemoryObserver(exporter).finish(error)  # nor does it keep what comes after it from being done
    exporter.finish(error)

    assert exporter.snapshot.totals.steps == 2
    assert exporter.snapshot.signals is not None
    assert exporter.snapshot.signals.loss == 1.5
    assert exporter.health.errors["step"] == 2
    assert exporter.health.errors["lifecycle"] == 2
    assert exporter.status.state == "crashed"
    assert len([r for r in caplog.records if r.levelname == "ERROR"]) == 2


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Allocator:
    """A process that has run out of memory in an earlier run, as in a notebook."""
    cuda = Allocator()
    cuda.counters[0] = counters(1, 2, retries=3, ooms=1)
    monkeypatch.setattr(memory, "_initialised_cuda", lambda: cuda)
    return cuda


def counts(exporter: TrainingExporter) -> tuple[float | None, float | None]:
    (reading,) = exporter.memory
    return reading.retries, reading.out_of_memory


def test_an_earlier_run_s_errors_are_not_this_one_s(cuda: Allocator) -> None:
    """The alert is for the run that ran out of memory. What comes after its exporter was made is
    its own, be it before the first step is closed, and stays when it trains on."""
    healthy, greedy = (TrainingExporter(serve=False) for _ in range(2))
    healthy.step(loss=1.0)
    assert counts(healthy) == (0, 0)

    cuda.counters[0] = counters(1, 2, retries=4, ooms=2)
    greedy.finish(torch.OutOfMemoryError())
    assert counts(greedy) == (1, 1)

    MemoryObserver(greedy).observe()  # another callback, or a second `train`
    greedy.step(loss=1.0)
    assert counts(greedy) == (1, 1)


def test_counters_that_cannot_be_read_keep_no_run_from_beginning(cuda: Allocator) -> None:
    """They are counted from when they can be."""
    cuda.fails = RuntimeError("no counters")
    exporter = TrainingExporter(serve=False)
    cuda.fails = None
    exporter.step(loss=1.0)

    assert counts(exporter) == (0, 0)
    assert exporter.health.errors["lifecycle"] == 1


def test_without_a_device_nothing_is_handed_on(exporter: TrainingExporter) -> None:
    """On a CPU, with the real allocator's watch."""
    for error in (None, torch.OutOfMemoryError(), ValueError()):
        MemoryObserver(exporter).finish(error)

    assert MemoryObserver(exporter).observe() is None
    assert exporter.memory == ()
    assert sum(exporter.health.errors.values()) == 0
