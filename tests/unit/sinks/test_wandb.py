# SPDX-License-Identifier: Apache-2.0
"""What W&B is given, by a stand-in for its run; with the real one see the integration tests."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Event, Thread
from time import monotonic
from types import SimpleNamespace
from typing import Any

import pytest
import wandb

from tests.unit.sinks.recording import END, SPIKE
from training_exporter.signals import Evaluation
from training_exporter.sinks import Point, RunInfo, SinkClosed
from training_exporter.sinks import wandb as module
from training_exporter.sinks.wandb import WandbSink
from training_exporter.status import ReportNote

INFO = RunInfo("tiny", 0, {})


class StandIn:
    """A run of W&B's that remembers, at a step that only the user moves."""

    def __init__(self, mode: str = "offline") -> None:
        self.settings = SimpleNamespace(mode=mode)
        self.offline = True
        self.step = 0
        self.summary: dict[str, Any] = {}
        self.logged: list[tuple[dict[str, Any], bool | None]] = []
        self.alerts: list[tuple[str, str]] = []
        self.exit_code: int | None = None

    def define_metric(self, name: str, **how: object) -> None:
        """Takes it."""

    def log(self, row: dict[str, Any], commit: bool | None = None) -> None:
        self.logged.append((row, commit))

    def alert(self, *, title: str, text: str, level: str, wait_duration: int) -> None:
        self.alerts.append((title, text))

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """The run that `wandb.init` makes, where W&B is to be offline."""
    run = StandIn()
    monkeypatch.setattr(wandb, "run", None)
    settings = SimpleNamespace(mode="offline")
    monkeypatch.setattr(wandb, "setup", lambda: SimpleNamespace(settings=settings))
    monkeypatch.setattr(module, "_answers", lambda *server: False)
    monkeypatch.setattr(WandbSink, "_opened", lambda *asked: run)
    return run


@pytest.fixture
def his(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """The user's run, which is active."""
    run = StandIn()
    monkeypatch.setattr(wandb, "run", run)
    return run


def begun(**arguments: Any) -> WandbSink:
    sink = WandbSink(**arguments)
    sink.start(INFO)
    return sink


def some(count: int, first: int = 1) -> list[Point]:
    return [Point(step, 100.0 + step, {"loss": 1.0}) for step in range(first, first + count)]


def test_rows_have_the_time_of_their_step(own: StandIn) -> None:
    """Not that of the batch, and an evaluation its own."""
    sink = begun()
    sink.steps(some(2))
    sink.evaluation(Evaluation(2, 150.0, "wiki", 2.0, {"f1": 0.5}))

    assert [row for row, _ in own.logged] == [
        {"monitor/step": 1, "monitor/loss": 1.0, "_timestamp": 101.0},
        {"monitor/step": 2, "monitor/loss": 1.0, "_timestamp": 102.0},
        {
            "monitor/step": 2, "monitor/eval_wiki_loss": 2.0, "monitor/eval_wiki_f1": 0.5,
            "_timestamp": 150.0,
        },
    ]  # fmt: skip


def test_a_users_row_keeps_its_time(his: StandIn) -> None:
    """What rides on it, evaluations too, neither commits it nor says when it was."""
    sink = begun()
    sink.steps(some(2))
    sink.evaluation(Evaluation(2, 150.0, "eval", 2.0))

    assert his.logged == [
        ({"monitor/step": 2, "monitor/loss": 1.0}, False),
        ({"monitor/step": 2, "monitor/eval_loss": 2.0}, False),
    ]


def test_a_report_is_an_alert(own: StandIn) -> None:
    """With where its file is; none for an overflow by which mixed precision finds its scale."""
    sink = begun()
    sink.anomaly(SPIKE)
    sink.report(ReportNote("loss", "it was the batch", "a/b.json", alarming=True))
    sink.report(ReportNote("loss", "it was the batch", None, alarming=True))
    sink.report(ReportNote("loss", "an overflow", "c.json", alarming=False))

    assert own.alerts[1:] == [
        ("report on a NaN", "it was the batch\na/b.json"), ("report on a NaN", "it was the batch"),
    ]  # fmt: skip


@pytest.mark.parametrize(("state", "code"), [("completed", 0), ("crashed", 1), ("stopped", 255)])
def test_only_what_completed_looks_so(own: StandIn, state: str, code: int) -> None:
    """A run that was stopped is marked as W&B marks one that Ctrl-C has ended."""
    begun().finish(END._replace(state=state))

    assert own.exit_code == code


HINT = "your W&B run has had no row so far"


def test_a_users_run_without_rows(his: StandIn, caplog: pytest.LogCaptureFixture) -> None:
    """Is said once, when many steps were given, and not again at the end."""
    sink = begun()
    sink.steps(some(module.MOST_PARKED - 1))
    assert HINT not in caplog.text
    for first in (1000, 2000):
        sink.steps(some(999, first))
    sink.finish(END)

    assert caplog.text.count(HINT) == 1
    assert "WandbSink(own_run=True)" in caplog.text


@pytest.mark.parametrize(
    ("steps", "moved", "mode", "said"),
    [
        (2, 0, "offline", 1), (2, 0, "online", 1), (2, 1, "online", 0), (1, 0, "online", 0),
        (2, 0, "disabled", 0), (2, 0, "shared", 0),
    ],
)  # fmt: skip
def test_a_short_run_without_rows(
    his: StandIn,
    caplog: pytest.LogCaptureFixture,
    steps: int,
    moved: int,
    mode: str,
    said: int,
) -> None:
    """Is said at its end, if a curve is lost, and W&B tells."""
    his.settings.mode = mode
    sink = begun()
    sink.steps(some(steps))
    his.step += moved
    sink.finish(END)

    assert caplog.text.count(HINT) == said


def test_a_run_of_its_own_has_all_rows(own: StandIn, caplog: pytest.LogCaptureFixture) -> None:
    """So there is nothing to say."""
    sink = begun()
    sink.steps(some(module.MOST_PARKED))
    sink.finish(END)

    assert HINT not in caplog.text


@pytest.mark.parametrize(("given", "elsewhere"), [("disabled", "online"), (None, "disabled")])
def test_disabled(own: StandIn, given: str | None, elsewhere: str) -> None:
    """Nothing is opened or written, whether the sink is told so or W&B is."""
    wandb.setup().settings.mode = elsewhere
    sink = begun(init={"mode": given})
    sink.steps(some(2))
    sink.evaluation(Evaluation(2, 150.0, "eval", 2.0))
    sink.anomaly(SPIKE)
    sink.report(ReportNote("loss", "it was the batch", None, alarming=True))
    sink.finish(END)

    assert (own.logged, own.alerts, own.summary, own.exit_code) == ([], [], {}, None)


@pytest.mark.parametrize(
    ("given", "elsewhere", "server", "asked"),
    [
        ("offline", "online", True, "offline"),
        ("online", "offline", True, "online"),
        (None, "online", True, "online"),
        (None, "online", False, "offline"),
        (None, "dryrun", True, "offline"),
    ],
)
def test_modes(
    own: StandIn,
    monkeypatch: pytest.MonkeyPatch,
    given: str | None,
    elsewhere: str,
    server: bool,
    asked: str,
) -> None:
    """What the sink is told counts, then what W&B is; online is only what has a server."""
    modes: list[str] = []
    monkeypatch.setattr(WandbSink, "_opened", lambda sink, run, mode: modes.append(mode) or own)
    monkeypatch.setattr(module, "_answers", lambda *of: server)
    monkeypatch.setattr(wandb, "login", lambda **how: True)
    wandb.setup().settings.mode = elsewhere
    wandb.setup().settings.base_url = "http://127.0.0.1:9"
    begun(init={"mode": given})

    assert modes == [asked]


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"init": "x"}, TypeError, "init must be a mapping of arguments of wandb.init, got 'x'"),
        ({"init": {"nonsense": 1}}, ValueError, "init takes entity, .*; got 'nonsense'"),
        ({"init": {"settings": None}}, ValueError, "init takes entity, .*; got 'settings'"),
        ({"init": {"reinit": True}}, ValueError, "init takes entity, .*; got 'reinit'"),
        (
            {"init": {"mode": "shared"}},
            ValueError,
            "mode in init must be one of online, offline, disabled; got 'shared'",
        ),
        ({"project": "a/b"}, ValueError, "Invalid project name 'a/b'"),
        ({"init": {"project": "a/b"}}, ValueError, "Invalid project name 'a/b'"),
        ({"project": 5}, TypeError, "project must be the name of one, got 5"),
    ],
)
def test_what_cannot_be_given(arguments: dict[str, Any], error: type[Exception], said: str) -> None:
    """Is refused before the training begins, by name."""
    with pytest.raises(error, match=said):
        WandbSink(**arguments)


def test_what_only_wandb_can_see(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switches the sink off with its reason in one line, and no traceback."""
    monkeypatch.setattr(wandb, "run", None)
    monkeypatch.setattr(wandb, "setup", lambda: SimpleNamespace(settings=None))
    sink = WandbSink(init={"id": "a/b", "mode": "offline"})

    with pytest.raises(SinkClosed, match=r"wandb\.init refuses what it is given: Run ID cannot"):
        sink.start(INFO)


class Refusing(BaseHTTPRequestHandler):
    """A server that has nothing of what is asked for."""

    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def port() -> Iterator[int]:
    """Of a server that answers."""
    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server.server_port
        server.shutdown()


def test_a_server_that_answers_is_there(port: int) -> None:
    """Whatever it says; where an answer cannot be understood, or a proxy not be used, W&B sees."""
    there = f"http://127.0.0.1:{port}/graphql"
    assert module._answers(there, {})
    assert module._answers(f"https://127.0.0.1:{port}/graphql", {})
    assert module._answers("http://127.0.0.1:9/graphql", {"http": f"http://127.0.0.1:{port}"})
    assert module._answers(there, {"http": "socks5://127.0.0.1:9"})


def test_a_server_that_is_away(port: int) -> None:
    """Has a closed port, or is behind a proxy that is away."""
    assert not module._answers("http://127.0.0.1:9/graphql", {})
    assert not module._answers("http://w.invalid/graphql", {"http": "http://127.0.0.1:9"})


def test_a_server_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Is given up as one that is away, in less than the end of a run waits."""
    monkeypatch.setattr(module, "PROBE_SECONDS", 0.2)
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        assert not module._answers(f"http://127.0.0.1:{silent.getsockname()[1]}/graphql", {})


def test_a_name_that_is_looked_up_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Does not hold up either, though nothing ends the looking up."""
    ended = Event()
    monkeypatch.setattr(module, "PROBE_SECONDS", 0.2)
    monkeypatch.setattr(module, "_answers", lambda *server: ended.wait(10))
    begin = monotonic()
    with pytest.raises(wandb.errors.CommError, match=r"http://w has not answered within 0.2 s"):
        module._require_answer(SimpleNamespace(base_url="http://w"))
    ended.set()

    assert monotonic() - begin < 5
