# SPDX-License-Identifier: Apache-2.0
"""Sinks are told everything in its order, on threads of their own, and never hold the run up."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from time import monotonic

import pytest

from tests.unit.sinks.recording import END, NOTE, RESULTS, SPIKE, Recording, Run
from training_exporter.catalog import SINK_ERROR
from training_exporter.layers.histograms import LayerHistograms, RawHistograms
from training_exporter.signals import Evaluation
from training_exporter.sinks import RunInfo, Sink, SinkClosed, SinkTrouble, feed
from training_exporter.sinks.feed import END_SECONDS, SinkFeed
from training_exporter.sinks.worker import BATCH_SECONDS, MOST_HISTOGRAMS, MOST_URGENT, MOST_WAITING

INFO = RunInfo("tiny", 0, {"model": "GPT"})


def test_everything_in_its_order() -> None:
    """Start, steps, an anomaly, an evaluation and a report after the steps before them, the end."""
    sink = Recording()
    run = Run(sink)

    run.step(1, 2, 3)
    run.feed.anomaly(SPIKE)
    run.step(4)
    run.feed.evaluation(RESULTS)
    run.step(5)
    run.feed.report(NOTE)
    run.end()

    assert sink.told == [INFO, 1, 2, 3, SPIKE, 4, RESULTS, 5, NOTE, END]
    assert run.feed.dropped() == {"recording": 0}


def test_a_run_that_goes_on_starts_anew() -> None:
    """A second `train()` is told as the first was, and an end twice is told twice."""
    sink = Recording()
    run = Run(sink)

    run.step(1)
    run.end()
    run.step(2)
    run.end()
    run.end()

    assert sink.told == [INFO, 1, END, INFO, 2, END, END]
    assert sink.first_steps == [1, 2]


def test_a_crash_before_the_first_step_is_told() -> None:
    """The thread is there by then, though no step has started it; and as any run it has started
    before it ended."""
    sink = Recording()
    run = Run(sink)

    run.end()
    run.step(1)
    run.end()

    assert sink.told == [INFO, END, INFO, 1, END]
    assert sink.first_steps == [None, 1]


def test_an_evaluation_before_the_first_step_waits_for_it() -> None:
    """By itself it is no run, and nobody is told that one has started."""
    sink = Recording()
    run = Run(sink)

    run.feed.evaluation(RESULTS)
    run.feed.wait()
    assert sink.told == []
    run.step(4)
    run.end()

    assert sink.told == [INFO, RESULTS, 4, END]
    assert sink.first_steps == [4]


def test_a_report_is_not_kept_waiting() -> None:
    """As an anomaly is not, while an evaluation comes with the next steps."""
    sink = Recording()
    run = Run(sink)
    run.step(1)

    run.feed.evaluation(RESULTS)
    run.feed.report(NOTE)
    run.feed.wait(BATCH_SECONDS / 2)
    assert sink.told == [INFO, 1, RESULTS, NOTE]


def test_steps_that_find_no_room_are_dropped_and_counted(
    logs: pytest.LogCaptureFixture,
) -> None:
    """A sink that is slow loses steps, but neither anomalies nor the end."""
    sink = Recording()
    sink.gate.clear()
    run = Run(sink)
    run.step(1)
    run.feed.anomaly(SPIKE)  # so that it is told at once
    assert sink.arrived.wait(10)

    run.step(*range(2, 2 + MOST_WAITING + 7))
    run.feed.anomaly(SPIKE)
    sink.gate.set()
    run.end()

    assert run.health.sink_drops() == {"recording": 7}
    assert sink.told[-3:] == [1 + MOST_WAITING, SPIKE, END]
    assert [record.levelname for record in logs.records] == ["WARNING"]
    assert "slower than the training" in logs.text


def test_anomalies_are_bounded_too() -> None:
    """Of a sink that hangs not even they pile up for ever."""
    sink = Recording()
    sink.gate.clear()
    run = Run(sink)
    run.step(1)
    run.feed.anomaly(SPIKE)
    assert sink.arrived.wait(10)

    for _ in range(MOST_WAITING + MOST_URGENT + 5):
        run.feed.anomaly(SPIKE)
    sink.gate.set()
    run.end()

    assert run.feed.dropped() == {"recording": 6}  # the end among them


@pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit, KeyboardInterrupt])
def test_a_sink_that_raises_is_retired(
    error: type[BaseException], logs: pytest.LogCaptureFixture
) -> None:
    """It is logged once with its traceback and counted, and others go on. Not even by sys.exit is
    its thread ended without a word."""
    bad, good = Recording("bad", raising=error("mine")), Recording("good")
    run = Run(bad, good)

    run.step(1)
    run.end()
    run.step(2)
    run.end()

    assert bad.told == [INFO]
    assert good.told == [INFO, 1, END, INFO, 2, END]
    assert run.health.errors[SINK_ERROR] == 1
    assert [record.levelname for record in logs.records] == ["ERROR"]
    assert f"as it raised {error.__name__}: mine" in logs.text
    assert "Traceback" in logs.text
    assert run.feed.dropped() == {"bad": 0, "good": 0}


def test_a_sink_may_be_retired_while_more_waits(logs: pytest.LogCaptureFixture) -> None:
    """What waited is let go of, and the thread ends well."""

    class Revoked(Recording):
        def evaluation(self, results: Evaluation) -> None:
            raise SinkClosed("token revoked")

    sink = Revoked()
    run = Run(sink)
    for _ in range(3):
        run.feed.evaluation(RESULTS)
    run.step(1)
    run.end()

    (worker,) = run.feed._all
    assert worker._thread is not None
    worker._thread.join(10)
    assert worker.retired
    assert not worker._waiting
    assert sink.told == [INFO]
    assert "Traceback" not in logs.text


def test_trouble_is_counted_and_goes_by(logs: pytest.LogCaptureFixture) -> None:
    """A server that is away may be back at the next step."""
    sink = Recording(raising=SinkTrouble("nobody there"))
    run = Run(sink)

    for step in (1, 2):
        run.step(step)
        run.end()
    sink.raising = None
    run.step(3)
    run.end()

    assert sink.told == [INFO, END, INFO, END, INFO, 3, END]
    assert run.health.errors[SINK_ERROR] == 2
    assert ["nobody there" in record.getMessage() for record in logs.records] == [True]


def test_start_is_asked_again_after_trouble(logs: pytest.LogCaptureFixture) -> None:
    """With the next that there is to tell, and until then nothing else is. Of what is lost
    meanwhile all that is rare is named, each time."""
    sink = Recording()
    sink.refusing = SinkTrouble("nobody there")
    run = Run(sink)

    run.step(1)
    run.feed.anomaly(SPIKE)
    run.step(2)
    run.feed.report(NOTE)
    run.end()
    assert sink.told == []
    sink.refusing = None
    run.step(3)
    run.end()

    assert sink.told == [INFO, 3, END]
    assert run.health.errors[SINK_ERROR] == 5
    assert [record.getMessage().partition("nobody there; ")[2] for record in logs.records] == [
        "more such trouble is only counted, in training_exporter_errors_total",
        "the anomaly loss_spike at step 3 was not delivered",
        "the report on a NaN was not delivered",
        "the end of the run was not delivered",
    ]


def test_a_sink_that_hangs_holds_nobody_up() -> None:
    """Neither a step nor, for longer than it may, the end."""
    sink = Recording()
    sink.gate.clear()
    run = Run(sink)
    run.step(1)

    started = monotonic()
    run.feed.finish(END)
    run.feed.wait(0.05)

    assert monotonic() - started < 5
    sink.gate.set()
    run.feed.wait()
    assert sink.told == [INFO, 1, END]


@pytest.fixture
def hanging() -> Iterator[Run]:
    """A run with a sink that is in the middle of its first step, with more before it."""
    sink = Recording()
    sink.gate.clear()
    run = Run(sink)
    run.step(1)
    run.feed.anomaly(SPIKE)
    assert sink.arrived.wait(10)
    run.step(2, 3)
    run.feed.finish(END)
    yield run
    sink.gate.set()
    run.feed.wait()


def test_who_waits_for_a_sink_is_told_so(
    hanging: Run, logs: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, and not before it gets long."""
    monkeypatch.setattr(feed, "QUIET_SECONDS", 0.1)

    hanging.feed.wait(0.05)
    assert logs.records == []
    hanging.feed.wait(0.3)

    (record,) = logs.records
    assert record.levelname == "INFO"
    assert record.getMessage() == "waiting up to 0.3 s for the sink recording"


def test_what_is_lost_at_the_end_of_the_process_is_said(
    hanging: Run, logs: pytest.LogCaptureFixture
) -> None:
    """How much the sink was not told, be it in the middle of it or not."""
    SinkFeed.wait_for_all(0.05)
    SinkFeed.give_up_all()

    (record,) = logs.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == (
        "gave up on the sink recording: 2 messages and 3 steps not delivered"
    )


def test_what_a_sink_does_not_want_is_not_lost(logs: pytest.LogCaptureFixture) -> None:
    """One that has no `steps` misses none; one that hangs in `start` misses that."""
    gate = threading.Event()

    class Chat(Sink):
        name = "chat"

        def start(self, run: RunInfo) -> None:
            assert gate.wait(10)

    run = Run(Chat())
    run.step(1, 2)
    run.feed.finish(END)
    SinkFeed.give_up_all()
    gate.set()
    run.feed.wait()
    SinkFeed.give_up_all()

    assert [record.getMessage() for record in logs.records] == [
        "gave up on the sink chat: 1 message not delivered"
    ]


def test_ctrl_c_ends_the_waiting(hanging: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """That at the end of the process too; but it is passed on, as the script would go on."""

    def press(seconds: float) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(feed, "sleep", press)
        with pytest.raises(KeyboardInterrupt):
            hanging.feed.wait()
    started = monotonic()
    SinkFeed.wait_for_all()

    assert monotonic() - started < END_SECONDS / 2
    hanging.feed.finish(END)
    assert not hanging.feed.interrupted


def test_other_ranks_tell_nobody() -> None:
    """Or a chat would have every message eight times."""
    sink = Recording()
    run = Run(sink, rank=1)

    run.step(1)
    run.feed.evaluation(RESULTS)
    run.feed.anomaly(SPIKE)
    run.feed.report(NOTE)
    run.end()

    assert sink.told == []
    assert not any(worker._waiting for worker in run.feed._all)


def test_threads_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once nothing will come any more; what comes all the same is told by new ones."""
    sink = Recording("ends")
    run = Run(sink)
    run.step(1)
    run.end()

    run.feed.leave()
    for thread in threading.enumerate():
        if thread.name == "training-exporter-ends":
            thread.join(10)
            assert not thread.is_alive()
    run.step(2)
    run.end()

    assert sink.told == [INFO, 1, END, INFO, 2, END]


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: [Recording("a"), Recording("a")], ValueError, "a name of its own, got a, a"),
        (lambda: [Recording("a b")], ValueError, "letters, digits.*'a b'"),
        (lambda: ["wandb"], TypeError, "must derive from training_exporter.sinks.Sink"),
    ],
)
def test_what_is_no_sink(make: Callable[[], list[Sink]], error: type[Exception], says: str) -> None:
    """Is refused when it is given, with what would be right."""
    with pytest.raises(error, match=says):
        Run(*make())


def test_a_forked_child_tells_nobody() -> None:
    """It has none of the threads, and the run is its parent's."""
    sink = Recording()
    run = Run(sink)

    run.feed.forget()
    run.step(1)
    run.end()

    assert sink.told == []
    assert run.health.sink_drops() == {}


def look(step: int) -> RawHistograms:
    return RawHistograms({}, {}, 1.0, step, 100.0)


def test_histograms_go_to_the_sinks_that_want_them() -> None:
    """In their order among the steps, as often as the keenest of them asks for."""
    often, seldom, never = (
        Recording(name, histogram_steps=steps)
        for name, steps in (("often", 10), ("seldom", 500), ("never", 0))
    )
    run = Run(often, seldom, never)
    assert run.feed.histogram_interval == 10

    run.feed.histograms(look(1))  # as a look may be there before its step
    run.step(1, 2)
    run.feed.histograms(look(2))
    run.end()

    first, second = (LayerHistograms(step, 100.0, {}, {}) for step in (1, 2))
    assert often.told == seldom.told == [INFO, first, 1, 2, second, END]
    assert never.told == [INFO, 1, 2, END]


def test_nobody_asks_for_histograms() -> None:
    """Nor does a rank that tells no sink: there they would be made for nothing."""
    assert Run(Recording()).feed.histogram_interval == 0
    assert Run(Recording(histogram_steps=5), rank=1).feed.histogram_interval == 0


def test_few_histograms_wait() -> None:
    """They are large; what a slow sink does not take is dropped and counted."""
    sink = Recording(histogram_steps=1)
    sink.gate.clear()
    run = Run(sink)
    run.step(1)
    run.feed.anomaly(SPIKE)  # wakes the thread
    assert sink.arrived.wait(10)
    for step in range(1, 6):
        run.feed.histograms(look(step))
    assert run.feed.dropped() == {"recording": 5 - MOST_HISTOGRAMS}
    sink.gate.set()
    run.end()

    found = [told.step for told in sink.told if isinstance(told, LayerHistograms)]
    assert found == [1, 2]
    run.feed.histograms(look(6))
    run.end()
    assert LayerHistograms(6, 100.0, {}, {}) in sink.told


@pytest.mark.parametrize("steps", [-1, 2.5, True, None])
def test_a_wrong_interval_of_histograms_is_refused(steps: int) -> None:
    """With the valid ones."""
    with pytest.raises(ValueError, match="recording must be a whole number from 0 on"):
        Run(Recording(histogram_steps=steps))
