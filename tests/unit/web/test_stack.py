# SPDX-License-Identifier: Apache-2.0
"""Where the training stands, on the page when it does not get on, and at /debug/stack if wanted."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from prometheus_client import CollectorRegistry

from training_exporter import StepSignals, TrainingExporter
from training_exporter.detectors import robust_detectors
from training_exporter.monitor import TrainingMonitor
from training_exporter.status import RunStatus
from training_exporter.web.app import MetricsApp
from training_exporter.web.landing_page import render
from training_exporter.web.stack import MAX_FRAMES, dump, frames_of, whereabouts

PASSWORD = "hunter2"


class Stuck:
    """A thread that waits in a function of this file, as one that trains does for its data."""

    def __init__(self) -> None:
        self.free = threading.Barrier(2)
        self.stands = threading.Event()
        self.thread = threading.Thread(target=self.train, name="a trainer", daemon=True)
        self.thread.start()
        self.stands.wait(10)

    def train(self) -> None:
        password = PASSWORD
        self.next_batch(len(password))

    def next_batch(self, _: int) -> None:
        self.stands.set()
        self.free.wait(10)  # four calls deep in the library

    @property
    def ident(self) -> int:
        assert self.thread.ident is not None
        return self.thread.ident

    def end(self) -> None:
        if self.thread.is_alive():
            self.free.wait(10)
        self.thread.join()


@pytest.fixture
def stuck() -> Iterator[Stuck]:
    stuck = Stuck()
    yield stuck
    stuck.end()


def page(ident: int | None, *, seconds_since: float, state: str = "running") -> str:
    monitor = TrainingMonitor(robust_detectors())
    monitor.observe(StepSignals(7, 1000.0, loss=2.0))
    return render(
        RunStatus("r", 0, state), monitor.snapshot, training_thread=ident, now=1000 + seconds_since
    )


def test_the_innermost_calls_and_the_users_own(stuck: Stuck) -> None:
    """Where it waits, and which line of the user's got it there."""
    text = whereabouts(stuck.ident)

    assert "/threading.py:" in text
    assert f"{Path(__file__).parent.name}/test_stack.py:" in text
    assert text.index(" wait</code>") < text.index(" next_batch</code>")
    assert text.count("<code>") == 3


def test_the_page_says_so_when_the_run_does_not_get_on(stuck: Stuck) -> None:
    """For how long, and where."""
    text = page(stuck.ident, seconds_since=125)

    assert "No progress for 2\N{NARROW NO-BREAK SPACE}min 5" in text
    assert "next_batch" in text


@pytest.mark.parametrize(
    ("seconds_since", "state"), [(59, "running"), (500, "evaluating"), (500, "completed")]
)
def test_nobody_looks_while_all_is_well(
    monkeypatch: pytest.MonkeyPatch, seconds_since: float, state: str
) -> None:
    """No frame of any thread is touched."""
    monkeypatch.setattr(sys, "_current_frames", lambda: pytest.fail("looked"))

    assert "No progress" not in page(1, seconds_since=seconds_since, state=state)


def test_a_thread_that_is_gone_and_one_that_is_unknown(stuck: Stuck) -> None:
    """Neither is guessed at."""
    stuck.end()

    assert frames_of(stuck.ident) == []
    assert "has ended" in page(stuck.ident, seconds_since=125)
    assert "stands in" not in page(None, seconds_since=125)


def test_which_thread_trains_is_the_one_that_steps() -> None:
    """Not the one that has made the exporter."""
    exporter = TrainingExporter(serve=False)
    thread = threading.Thread(target=lambda: exporter.observe(StepSignals(1, 0.0)))
    thread.start()
    thread.join()
    before = exporter._board.training_thread

    exporter.set_state("running")

    assert before == thread.ident
    assert exporter._board.training_thread == threading.get_ident()


def test_the_dump_has_all_threads_with_their_names(stuck: Stuck) -> None:
    """And no values of variables."""
    text = dump(stuck.ident)

    assert f"a trainer {stuck.ident} (trains)\n" in text
    assert f"MainThread {threading.main_thread().ident}\n" in text
    assert f'File "{__file__}", line ' in text
    assert ", in next_batch" in text
    assert PASSWORD not in text
    assert "self" not in text


def test_the_dump_of_a_recursion_is_bounded() -> None:
    """As one that went astray."""

    def down(levels: int) -> str:
        return down(levels - 1) if levels else dump(None)

    text = down(3 * MAX_FRAMES)

    mine = next(part for part in text.split("\n\n") if part.startswith("MainThread"))
    assert mine.count("  File ") == MAX_FRAMES
    assert mine.endswith("  ...")


def asked(path: str, **settings: Any) -> tuple[int, str]:
    """The status and the text that a real server gives."""
    with TrainingExporter(port=0, address="127.0.0.1", **settings) as exporter:
        try:
            with urlopen(f"http://127.0.0.1:{exporter.port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except HTTPError as error:
            with error:
                return error.code, error.read().decode()
        finally:
            exporter.close()


def test_the_path_is_there_only_when_it_is_turned_on() -> None:
    """Else the answer names the setting."""
    status, text = asked("/debug/stack", debug_stack=True)
    off = asked("/debug/stack")

    assert status == 200
    assert "MainThread" in text
    assert off == (
        404,
        "not turned on; set debug_stack=True or TRAINING_EXPORTER_DEBUG_STACK=1\n",
    )


def test_only_what_is_there_is_listed() -> None:
    """A wrong path names the right ones."""
    assert "/debug/stack" not in asked("/nowhere")[1]
    assert "/debug/stack" in asked("/nowhere", debug_stack=True)[1]


def test_a_dump_that_fails_is_a_failing_page() -> None:
    """Counted like any other."""
    errors: list[str] = []

    def broken() -> str:
        raise RuntimeError

    app = MetricsApp(
        CollectorRegistry(),
        str,
        ready=lambda: True,
        on_error=lambda: errors.append("x"),
        on_scrape=lambda _: None,
        stack=broken,
    )
    given: list[Any] = []
    app({"REQUEST_METHOD": "GET", "PATH_INFO": "/debug/stack"}, lambda *args: given.extend(args))  # type: ignore[arg-type,return-value]

    assert given[0].startswith("500")
    assert errors == ["x"]
