# SPDX-License-Identifier: Apache-2.0
"""PhaseClock with a device that is behind the host, as a GPU is."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.sync_audit import SyncAudit
from tests.unit.device.late_device import LateDevice, LateEvent
from training_exporter.catalog import FORWARD_BACKWARD, OPTIMIZER
from training_exporter.device.phases import EventMarks, TimedAccelerator, open_phases
from training_exporter.timing.phases import (
    EXPORTER,
    HostMarks,
    PhaseClock,
    PhaseTimes,
)


class LateTimedEvent(LateEvent):
    """Knows when it was passed, once it was."""

    passed_at = 0.0

    def elapsed_time(self, end: LateTimedEvent) -> float:
        assert not self._device.graph, "asking an event would break the capture of a graph"
        if self.pending or end.pending:
            raise RuntimeError("both events must be passed")
        return (end.passed_at - self.passed_at) * 1e3


class LateTimedDevice(LateDevice):
    """Work and marks are queued, and done in their order when `advance` says so.

    Attributes:
        made: events that were ever made.
        recorded: how often one was put behind the work.
    """

    def __init__(self) -> None:
        super().__init__()
        self.made = self.recorded = 0
        self.now = 0.0
        self._work: list[float | LateTimedEvent] = []

    def new_event(self) -> LateTimedEvent:
        self.made += 1
        return LateTimedEvent(self)

    def record(self, event: Any) -> None:
        assert not self.graph, "an event recorded in a capture is part of the graph"
        assert not event.pending, "an event was used again before it was passed"
        event.pending = True
        self.recorded += 1
        self._work.append(event)

    def work(self, seconds: float) -> None:
        self._work.append(seconds)

    @property
    def behind(self) -> int:
        return len(self._work)

    def advance(self, copies: int = 1) -> None:
        for _ in range(copies):
            item = self._work.pop(0)
            if isinstance(item, float):
                self.now += item
            else:
                item.passed_at, item.pending = self.now, False

    def catch_up(self) -> None:
        self.advance(self.behind)

    def clock(self, *, events: int = 512, steps: int = 64) -> PhaseClock:
        marks = EventMarks(torch.device("cpu"), limit=events, backend=self)
        return PhaseClock(marks, steps=steps)


def run(device: LateTimedDevice, phases: PhaseClock, step: int, *, batches: int = 1) -> None:
    """A step whose times tell its number."""
    for _ in range(batches):
        with phases.inside(FORWARD_BACKWARD):
            device.work(float(step))
        device.work(50.0)
    phases.begin(OPTIMIZER)
    device.work(0.25)
    with phases.inside(EXPORTER):
        device.work(0.125)
    device.work(0.25)
    phases.lap(step)


def expected(step: int, batches: int = 1) -> PhaseTimes:
    return PhaseTimes(
        step, {FORWARD_BACKWARD: float(step * batches), OPTIMIZER: 0.5, EXPORTER: 0.125}
    )


def test_times_are_the_device_s_and_come_when_it_has_passed() -> None:
    """Not those of the host, to which the step took no time at all."""
    device = LateTimedDevice()
    phases = device.clock()
    run(device, phases, 3)
    before = phases.completed()
    device.catch_up()

    assert before == []
    assert phases.completed() == [expected(3)]
    assert device.waits == 0


def test_a_step_whose_last_mark_is_outstanding_does_not_appear() -> None:
    """Half of a phase would be a wrong time."""
    device = LateTimedDevice()
    phases = device.clock()
    run(device, phases, 1)
    device.advance(device.behind - 1)
    before = phases.completed()
    device.advance()

    assert (before, phases.completed()) == ([], [expected(1)])


def test_gradient_accumulation_sums_micro_batches() -> None:
    """What the device does between them belongs to no phase."""
    device = LateTimedDevice()
    phases = device.clock()
    run(device, phases, 2, batches=4)
    device.catch_up()

    assert phases.completed() == [expected(2, batches=4)]


def test_events_are_used_again() -> None:
    """After a thousand steps there are no more of them than the lag needs."""
    device = LateTimedDevice()
    phases = device.clock()
    for step in range(1000):
        run(device, phases, step)
        device.catch_up()
        assert phases.completed() == [expected(step)]

    assert device.made <= 6


def test_a_step_with_more_micro_batches_than_events_is_timed() -> None:
    """Those that the device has passed are free again in the middle of the step."""
    device = LateTimedDevice()
    phases = device.clock(events=8)
    for _ in range(100):
        with phases.inside(FORWARD_BACKWARD):
            device.work(1.0)
        device.catch_up()
    phases.lap(1)

    assert phases.completed() == [PhaseTimes(1, {FORWARD_BACKWARD: 100.0})]
    assert phases.dropped == 0


def test_a_long_step_is_timed_on_a_device_that_has_passed_nothing() -> None:
    """As many events are made as gradient accumulation needs."""
    device = LateTimedDevice()
    phases = PhaseClock(EventMarks(torch.device("cpu"), backend=device))
    run(device, phases, 1, batches=2000)
    device.catch_up()

    assert phases.completed() == [expected(1, batches=2000)]
    assert phases.dropped == 0


def test_an_empty_pool_drops_the_step_and_counts() -> None:
    """Nobody waits, no event is made beyond the bound, and later steps are timed again."""
    device = LateTimedDevice()
    phases = device.clock(events=8)
    for step in (1, 2, 3):
        run(device, phases, step)
    device.catch_up()
    seen = phases.completed()
    run(device, phases, 4)
    device.catch_up()

    assert seen == [expected(1)]
    assert phases.completed() == [expected(4)]
    assert (phases.dropped, device.made, device.waits) == (2, 8, 0)


def test_nothing_is_marked_or_asked_while_a_graph_is_captured() -> None:
    """The step that captures has no times; the ones before and after it have."""
    device = LateTimedDevice()
    phases = device.clock()
    run(device, phases, 1)
    device.catch_up()
    device.graph = True
    run(device, phases, 2)
    during = phases.completed()
    device.graph = False
    run(device, phases, 3)
    device.catch_up()

    assert during == []
    assert phases.completed() == [expected(1), expected(3)]
    assert phases.dropped == 1


@pytest.mark.parametrize("captured", range(8))
def test_a_capture_inside_a_step_loses_that_step_only(captured: int) -> None:
    """Wherever in the step it lies."""
    device = LateTimedDevice()
    phases = device.clock()
    turns = [
        lambda: phases.begin(FORWARD_BACKWARD),
        lambda: phases.end(FORWARD_BACKWARD),
        lambda: phases.begin(OPTIMIZER),
        lambda: phases.begin(EXPORTER),
        lambda: phases.end(EXPORTER),
        lambda: phases.end(OPTIMIZER),
        lambda: phases.begin(FORWARD_BACKWARD),
        lambda: phases.end(FORWARD_BACKWARD),
    ]
    for place, turn in enumerate(turns):
        device.graph = place == captured
        turn()
    device.graph = False
    phases.lap(1)
    run(device, phases, 2)
    device.catch_up()

    assert phases.completed() == [expected(2)]
    assert phases.dropped == 1


def test_a_start_may_be_late_on_a_stream_of_its_own() -> None:
    """Its stretch has no length yet, though its end has passed."""
    device = LateTimedDevice()
    marks = EventMarks(torch.device("cpu"), backend=device)
    start, end = marks.mark(), marks.mark()
    assert isinstance(end, LateTimedEvent)
    end.pending = False
    early = marks.elapsed(start, end)
    device.catch_up()

    assert early is None
    assert marks.elapsed(start, end) == 0.0


def test_flush_waits_once_and_gives_all_that_is_left() -> None:
    """Only at the end of training is the device waited for."""
    device = LateTimedDevice()
    phases = device.clock()
    for step in (1, 2, 3):
        run(device, phases, step)

    assert phases.flush() == [expected(1), expected(2), expected(3)]
    assert device.waits == 1
    assert phases.flush() == []


def test_an_abandoned_step_gives_its_events_back() -> None:
    """A loop that often gives up does not run out of them."""
    device = LateTimedDevice()
    phases = device.clock(events=8)
    for _ in range(10):
        phases.begin(FORWARD_BACKWARD)
        phases.begin(EXPORTER)
        device.work(9.0)
        phases.discard()
        device.catch_up()
    run(device, phases, 5)
    device.catch_up()

    assert phases.completed() == [expected(5)]


def test_any_rhythm_of_host_and_device_keeps_times_and_events() -> None:
    """Steps given up, captures and a lagging device at random: right times, and no event lost."""
    chance = random.Random(7)
    device = LateTimedDevice()
    phases = device.clock(events=24, steps=6)
    seen: list[PhaseTimes] = []
    for step in range(1, 2000):
        batches = chance.randrange(1, 4)
        device.graph = chance.random() < 0.1
        run(device, phases, step * 4 + batches, batches=batches)
        if chance.random() < 0.1:
            phases.begin(chance.choice([EXPORTER, OPTIMIZER]))
            device.graph = False
            phases.begin(FORWARD_BACKWARD)
            phases.discard()
        device.graph = False
        device.advance(chance.randrange(device.behind + 1))
        if chance.random() < 0.7:
            seen += phases.completed()
    device.catch_up()
    seen += phases.completed()
    timed = [run_.step for run_ in seen]
    for _ in range(3):  # all 24 are there again: 6 are in a step of one batch, 8 in two
        run(device, phases, 9, batches=2)
    device.catch_up()

    assert timed == sorted(timed)
    assert seen == [expected(step, batches=step % 4) for step in timed]
    assert len(seen) + phases.dropped == 1999
    assert 200 < len(seen) < 1900
    assert len(phases.completed()) == 3


def test_the_host_reads_nothing_from_the_device() -> None:
    """The audit over many steps: no sync, no wait."""
    device = LateTimedDevice()
    phases = device.clock()
    with SyncAudit() as audit:
        for step in range(20):
            run(device, phases, step)
            device.catch_up()
            phases.completed()

    assert audit.syncs == []
    assert device.waits == 0


def test_the_cpu_is_timed_by_the_host() -> None:
    """It is the device itself."""
    phases = open_phases(torch.device("cpu"))

    assert isinstance(phases._marks, HostMarks)


def test_a_device_without_events_is_refused() -> None:
    """To time it would be to wait for it."""
    with pytest.raises(TypeError, match="'meta'"):
        open_phases(torch.device("meta"))


@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps"])
def test_each_kind_of_device_has_timed_events(kind: str) -> None:
    """The classes exist in this torch, whether or not the machine has the device."""
    backend = TimedAccelerator(torch.device(kind))

    assert backend.new_event.keywords == {"enable_timing": True}


def test_marks_lie_on_the_stream_of_the_device_that_is_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not on that of the current device, which need not be the same; and events have timing."""
    recorded: list[object] = []

    class Event:
        def __init__(self, enable_timing: bool = False) -> None:
            self.enable_timing = enable_timing

        def record(self, stream: object) -> None:
            recorded.append((self.enable_timing, stream))

    accelerator = SimpleNamespace(Event=Event, current_stream=lambda device: f"stream of {device}")
    monkeypatch.setattr(torch, "hpu", accelerator, raising=False)
    open_phases(torch.device("hpu:1")).begin(FORWARD_BACKWARD)

    assert recorded == [(True, "stream of hpu:1")]
