# SPDX-License-Identifier: Apache-2.0
"""StepRecorder and its rows with a device that is behind the host, as a GPU is."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
import torch

from tests.sync_audit import SyncAudit
from tests.unit.device.late_device import LateDevice
from training_exporter.device import rows
from training_exporter.device.recorder import StepRecorder
from training_exporter.device.rows import Accelerator, AsyncRows, open_rows


def record(recorder: StepRecorder, step: int, *, on_device: bool = True) -> None:
    value = float(step)
    recorder.add_loss(torch.tensor(value) if on_device else value)
    recorder.finish(step=step, timestamp=value)


def steps(recorder: StepRecorder) -> list[tuple[int, float | None]]:
    return [(signals.step, signals.loss) for signals in recorder.completed()]


def test_a_step_appears_when_the_device_has_done_its_copy() -> None:
    """Not before, with its own value, and the host never waits for it."""
    device = LateDevice()
    recorder = device.recorder()
    record(recorder, 1)
    record(recorder, 2)
    before = steps(recorder)
    device.advance()
    first = steps(recorder)
    device.advance()

    assert (before, first, steps(recorder)) == ([], [(1, 1.0)], [(2, 2.0)])
    assert device.waits == 0


def test_a_step_without_tensors_keeps_its_place() -> None:
    """It has nothing to wait for, but steps come in order."""
    device = LateDevice()
    recorder = device.recorder()
    record(recorder, 1, on_device=False)
    record(recorder, 2)
    record(recorder, 3, on_device=False)
    at_once = steps(recorder)
    device.advance()

    assert at_once == [(1, 1.0)]
    assert steps(recorder) == [(2, 2.0), (3, 3.0)]


def test_a_full_ring_drops_and_counts() -> None:
    """When no row is free the step is lost whole; nobody waits, and later steps are seen again."""
    device = LateDevice()
    recorder = device.recorder(slots=2)
    for step in (1, 2, 3):
        record(recorder, step)
    device.advance(2)
    seen = steps(recorder)
    record(recorder, 4)
    device.advance()

    assert seen + steps(recorder) == [(1, 1.0), (2, 2.0), (4, 4.0)]
    assert recorder.dropped == 1
    assert device.waits == 0


def test_a_step_that_found_no_row_stays_lost() -> None:
    """A row that comes free in the middle of a step would hold only a part of its sums."""
    device = LateDevice()
    recorder = device.recorder(slots=1)
    record(recorder, 1)
    recorder.add_loss(torch.tensor(1.0))
    device.advance()
    seen = steps(recorder)
    recorder.add_loss(torch.tensor(1.0))
    recorder.finish(step=2, timestamp=0.0)
    record(recorder, 3)
    device.advance()

    assert seen == [(1, 1.0)]
    assert steps(recorder) == [(3, 3.0)]
    assert recorder.dropped == 1


def test_micro_batches_are_summed_in_the_row_at_once() -> None:
    """A loss whose memory is overwritten later, as CUDA graphs do, has been counted by then."""
    device = LateDevice()
    recorder = device.recorder()
    loss = torch.tensor(0.0)
    for value in (1.0, 2.0, 4.0):
        loss.fill_(value)
        recorder.add_loss(loss)
    loss.fill_(100.0)
    recorder.add_loss(0.5)
    recorder.finish(step=1, timestamp=0.0)
    device.advance()

    assert steps(recorder) == [(1, 7.5)]


def test_a_reused_row_forgets_its_last_step() -> None:
    """Rows are never cleared, so what a step did not set must not show through."""
    device = LateDevice()
    recorder = device.recorder(slots=1)
    recorder.set_grad_norm(torch.tensor(9.0))
    recorder.add_loss(torch.tensor(8.0))
    recorder.finish(step=1, timestamp=0.0)
    device.advance()
    recorder.completed()
    recorder.add_loss(torch.tensor(1.0))
    recorder.finish(step=2, timestamp=0.0)
    device.advance()
    (signals,) = recorder.completed()

    assert (signals.loss, signals.grad_norm) == (1.0, None)


@pytest.mark.parametrize("first_on_device", [True, False])
def test_the_last_one_set_counts_wherever_it_is(first_on_device: bool) -> None:
    """A number replaces a tensor and a tensor a number."""
    device = LateDevice()
    recorder = device.recorder()
    recorder.add_loss(torch.tensor(0.0))
    values = [torch.tensor(1.0), 2.0] if first_on_device else [1.0, torch.tensor(2.0)]
    for value in values:
        recorder.set_grad_norm(value)
    recorder.finish(step=1, timestamp=0.0)
    device.advance()

    assert recorder.completed()[0].grad_norm == 2.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_every_dtype_is_widened_in_the_row(dtype: torch.dtype) -> None:
    """The sum of two low-precision losses is exact, which it would not be in their own dtype."""
    device = LateDevice()
    recorder = device.recorder()
    big, small = torch.tensor(256.0, dtype=dtype), torch.tensor(0.0078125, dtype=dtype)
    recorder.add_loss(big)
    recorder.add_loss(small)
    recorder.add_tokens(torch.tensor(2**24 + 1))
    recorder.add_tokens(torch.tensor(2**24))
    recorder.finish(step=1, timestamp=0.0)
    device.advance()
    (signals,) = recorder.completed()

    assert (signals.loss, signals.tokens) == (256.0078125, 2**25 + 1)


def test_a_spoilt_sum_has_no_value_in_its_row_either() -> None:
    """A refused part leaves the field absent although other parts are in the row."""
    device = LateDevice()
    recorder = device.recorder()
    recorder.add_loss(torch.tensor(1.0))
    with pytest.raises(ValueError, match="one value"):
        recorder.add_loss(torch.zeros(2))
    recorder.finish(step=1, timestamp=0.0)
    device.advance()

    assert steps(recorder) == [(1, None)]


def test_an_aborted_step_gives_its_row_back() -> None:
    """A loop that often gives up does not run out of rows."""
    device = LateDevice()
    recorder = device.recorder(slots=1)
    for _ in range(3):
        recorder.add_loss(torch.tensor(5.0))
        recorder.discard()
    recorder.add_loss(torch.tensor(5.0))
    with pytest.raises(TypeError):
        recorder.finish(step=1, timestamp=0.0, unknown=1)
    record(recorder, 2)
    device.advance()

    assert steps(recorder) == [(2, 2.0)]


def test_flush_waits_and_gives_all_that_is_left() -> None:
    """Only at the end of training is the device waited for."""
    device = LateDevice()
    recorder = device.recorder()
    for step in (1, 2, 3):
        record(recorder, step)
    left = recorder.flush()

    assert [signals.loss for signals in left] == [1.0, 2.0, 3.0]
    assert device.waits == 3
    assert recorder.flush() == []


def test_nothing_is_recorded_or_asked_while_a_graph_is_captured() -> None:
    """A captured value is no value yet, and asking an event would break the user's capture."""
    device = LateDevice()
    recorder = device.recorder()
    record(recorder, 1)
    device.advance()
    device.graph = True
    recorder.set_grad_norm(torch.tensor(2.0))
    during = recorder.completed()
    device.graph = False
    recorder.finish(step=2, timestamp=0.0)
    signals = recorder.completed()

    assert during == []
    assert [(s.step, s.grad_norm) for s in signals] == [(1, None), (2, None)]


def test_no_rows_are_made_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the first value of all comes in a capture: to allocate would break it."""
    device = LateDevice()
    recorder = device.recorder()
    with monkeypatch.context() as captured:
        captured.setattr(rows, "capturing_on", lambda device: True)
        recorder.add_loss(torch.tensor(1.0))
        assert recorder._rows is None
    recorder.finish(step=1, timestamp=0.0)
    record(recorder, 2)
    device.advance()

    assert steps(recorder) == [(1, None), (2, 2.0)]


def test_the_host_never_waits_nor_reads_a_device_value() -> None:
    """The audit over many steps with every kind of value: no sync, no wait."""
    device = LateDevice()
    recorder = device.recorder(slots=8)
    value = torch.tensor(1.0, requires_grad=True) * 2
    with SyncAudit() as audit:
        for step in range(20):
            recorder.add_loss(value)
            recorder.add_loss(value)
            recorder.set_grad_norm(value)
            recorder.set_learning_rate("0", value)
            recorder.finish(step=step, timestamp=0.0)
            device.advance()
            recorder.completed()

    assert audit.syncs == []
    assert device.waits == 0


def test_any_rhythm_of_host_and_device_keeps_order_and_values() -> None:
    """Random progress of the device: steps come in order, each with its own value or not at all."""
    chance = random.Random(7)
    device = LateDevice()
    recorder = device.recorder(slots=3)
    seen: list[tuple[int, float | None]] = []
    for step in range(500):
        record(recorder, step, on_device=chance.random() < 0.8)
        for _ in range(chance.randrange(3)):
            if device.behind:
                device.advance()
        if chance.random() < 0.7:
            seen += steps(recorder)
    seen += [(signals.step, signals.loss) for signals in recorder.flush()]

    assert seen == sorted(seen)
    assert all(loss == step for step, loss in seen)
    assert len(seen) + recorder.dropped == 500


def test_rows_may_be_opened_in_inference_mode() -> None:
    """Else they could not be written to once training goes on."""
    device = LateDevice()
    recorder = device.recorder()
    with torch.inference_mode():
        recorder.add_loss(torch.tensor(1.0))
    recorder.add_loss(torch.tensor(1.0))
    recorder.finish(step=1, timestamp=0.0)
    device.advance()

    assert steps(recorder) == [(1, 2.0)]


def test_the_cpu_needs_no_rows() -> None:
    """Its tensors are values already."""
    assert open_rows(torch.device("cpu"), 4, 4) is None


def test_a_device_without_events_is_refused() -> None:
    """To read it would be to wait for it, and the message says what to do instead."""
    recorder = StepRecorder()
    with pytest.raises(TypeError, match=r"'meta' cannot be read without waiting.*pass numbers"):
        recorder.add_loss(torch.tensor(1.0, device="meta"))


@pytest.mark.parametrize(
    ("type_", "dtype", "pinned"),
    [("cuda", torch.float64, True), ("xpu", torch.float32, True), ("mps", torch.float32, False)],
)
def test_each_kind_of_device_has_its_events(type_: str, dtype: torch.dtype, pinned: bool) -> None:
    """The classes exist in this torch, whether or not the machine has the device."""
    backend = Accelerator(torch.device(type_))

    assert (backend.dtype, backend.pinned, callable(backend.new_event)) == (dtype, pinned, True)


def test_a_late_device_row_is_wrong_until_its_event() -> None:
    """The fake is a fair one: whoever does not ask the event reads garbage."""
    device = LateDevice()
    rows: AsyncRows = device.rows(slots=1, columns=1)
    slot = rows.acquire()
    assert slot is not None
    rows.put(slot, 0, torch.tensor(5.0))
    rows.send(slot)
    early = rows.read(slot)
    arrived = rows.arrived(slot)
    rows.wait(slot)

    assert (early, arrived, rows.read(slot)) == ([-1.0], False, [5.0])


def test_the_event_follows_the_copy_on_its_own_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """The row's device need not be the current one, whose stream may be far ahead."""
    recorded: list[object] = []

    class Event:
        def record(self, stream: object) -> None:
            recorded.append((host.tolist(), stream))

    accelerator = SimpleNamespace(Event=Event, current_stream=lambda device: f"stream of {device}")
    monkeypatch.setattr(torch, "hpu", accelerator, raising=False)
    backend = Accelerator(torch.device("hpu:1"))
    host = torch.zeros(2)
    backend.copy(torch.tensor([1.0, 2.0]), host, backend.new_event())

    assert recorded == [([1.0, 2.0], "stream of hpu:1")]
