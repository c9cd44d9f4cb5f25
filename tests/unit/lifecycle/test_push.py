# SPDX-License-Identifier: Apache-2.0
"""What a Pushgateway is told of a run, and that one in trouble holds nobody up."""

from __future__ import annotations

import threading
import time
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import SimpleQueue
from typing import Any, NamedTuple

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge

from training_exporter import ExporterConfig, StepSignals, TrainingExporter
from training_exporter.lifecycle import push
from training_exporter.lifecycle.push import Pusher, PushSettings

PATIENCE = 10.0


class Received(NamedTuple):
    """A request that the gateway got."""

    method: str
    path: str
    body: str


class Gateway:
    """A Pushgateway that keeps what it is told.

    Attributes:
        status: what it answers.
        hang: set while it answers nothing at all.
    """

    def __init__(self) -> None:
        gateway = self
        self.status = 200
        self.answers = threading.Event()
        self.answers.set()
        self.requests: SimpleQueue[Received] = SimpleQueue()

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                gateway.requests.put(Received(self.command, self.path, body.decode()))
                gateway.answers.wait(PATIENCE)
                self.send_response(gateway.status)
                self.end_headers()
                self.wfile.write(b"inconsistent\nmetrics" if gateway.status >= 400 else b"")

            do_DELETE = do_PUT  # noqa: N815

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def next(self) -> Received:
        return self.requests.get(timeout=PATIENCE)


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    gateway = Gateway()
    thread = threading.Thread(target=gateway.server.serve_forever, args=(0.01,))
    thread.start()
    yield gateway
    gateway.answers.set()
    for pushing in ours():
        pushing.join()
    gateway.server.shutdown()
    gateway.server.server_close()
    thread.join()


class Run:
    """A run with a counter and a gauge, and what pushes it."""

    def __init__(self, gateway: str, cleanup_seconds: float | None = None) -> None:
        self.registry = CollectorRegistry()
        self.counter = Counter("events", "", registry=self.registry)
        self.labels = {"run": "r", "rank": "0"}
        self.state = "running"
        self.failures = 0
        Gauge("depth", "", registry=self.registry).set(2)
        self.pusher = Pusher(
            PushSettings(gateway, cleanup_seconds),
            self.registry,
            lambda: self.labels,
            lambda: self.state,
            self._fail,
        )

    def _fail(self) -> None:
        self.failures += 1

    def end(self, state: str = "completed", *, cleanup: bool = True) -> None:
        self.state = state
        self.pusher.leave(cleanup=cleanup)
        self.pusher.wait()


def ours() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.endswith("-push")]


def test_counters_at_the_start_and_all_at_the_end(gateway: Gateway) -> None:
    """A gauge from the start would stay for ever if the process were killed."""
    run = Run(gateway.url)

    run.pusher.start()
    start = gateway.next()
    run.counter.inc()
    run.end()
    end = gateway.next()

    assert (start.method, start.path) == ("PUT", "/metrics/job/training/rank/0/run/r")
    assert "events_total 0.0" in start.body
    assert "depth" not in start.body
    assert (end.method, end.path) == (start.method, start.path)
    assert "events_total 1.0" in end.body
    assert "depth 2.0" in end.body
    assert gateway.requests.empty()
    assert ours() == []


def test_the_end_is_told_before_the_process_ends(gateway: Gateway) -> None:
    """Whoever works on in a notebook is not the run."""
    run = Run(gateway.url)
    run.pusher.start()
    gateway.next()

    run.pusher.tell()
    run.state = "stopped"
    run.pusher.tell()

    assert "depth" in gateway.next().body
    run.end("stopped")


def test_a_run_that_is_not_over_pushes_no_end(gateway: Gateway) -> None:
    """It would be running in the gateway for ever."""
    run = Run(gateway.url)
    run.pusher.start()
    gateway.next()

    run.end("running", cleanup=False)

    assert gateway.requests.empty()
    assert ours() == []


def test_a_completed_run_is_deleted_once_it_could_be_scraped(gateway: Gateway) -> None:
    """The wait counts from when the gateway first had its end."""
    run = Run(gateway.url, cleanup_seconds=0.3)
    run.pusher.start()
    gateway.next()
    began = time.monotonic()

    run.end()

    assert gateway.next().method == "PUT"
    assert gateway.next() == Received("DELETE", "/metrics/job/training/rank/0/run/r", "")
    assert 0.3 <= time.monotonic() - began < 3
    assert ours() == []


@pytest.mark.parametrize(
    ("state", "cleanup", "seconds"),
    [("crashed", True, 60.0), ("completed", False, 60.0), ("completed", True, None)],
)
def test_what_is_not_deleted(
    gateway: Gateway, state: str, cleanup: bool, seconds: float | None
) -> None:
    """A crash is there to be looked at; and nobody waits where nothing is to be deleted."""
    run = Run(gateway.url, cleanup_seconds=seconds)
    run.pusher.start()
    gateway.next()
    began = time.monotonic()

    run.end(state, cleanup=cleanup)

    assert gateway.next().method == "PUT"
    assert gateway.requests.empty()
    assert time.monotonic() - began < 3


def test_two_who_leave_one_after_the_other(gateway: Gateway) -> None:
    """The end of the process does not shorten the wait of an exporter that was dropped before."""
    run = Run(gateway.url, cleanup_seconds=0.3)
    run.pusher.start()
    gateway.next()
    run.state = "completed"
    began = time.monotonic()

    run.pusher.leave(cleanup=True)
    run.end()

    assert [gateway.next().method for _ in range(2)] == ["PUT", "DELETE"]
    assert time.monotonic() - began >= 0.3


def test_close_ends_the_wait_of_an_earlier_one(gateway: Gateway) -> None:
    """Somebody has no time after all: the group stays."""
    run = Run(gateway.url, cleanup_seconds=60.0)
    run.pusher.start()
    gateway.next()
    run.state = "completed"
    run.pusher.leave(cleanup=True)
    gateway.next()

    run.end(cleanup=False)

    assert ours() == []
    assert gateway.requests.empty()


def test_a_run_that_gets_its_name_late_leaves_nothing_under_another(gateway: Gateway) -> None:
    """An integration may learn it after the start."""
    run = Run(gateway.url)
    run.pusher.start()
    gateway.next()

    run.labels = {"run": "a/b", "rank": "3"}
    run.end()

    named = urlsafe_b64encode(b"a/b").decode()
    assert gateway.next().path == f"/metrics/job/training/rank/3/run@base64/{named}"
    assert gateway.next()[:2] == ("DELETE", "/metrics/job/training/rank/0/run/r")


def test_a_gateway_that_refuses_is_one_warning(
    gateway: Gateway, logs: pytest.LogCaptureFixture
) -> None:
    """With what the gateway says of it; each failure counts; nobody waits for a cleanup."""
    gateway.status = 400
    run = Run(gateway.url, cleanup_seconds=60.0)
    run.pusher.start()
    gateway.next()

    run.end()

    assert run.failures == 2
    (record,) = logs.records
    assert gateway.url in record.getMessage()
    assert "HTTP Error 400: Bad Request: inconsistent metrics" in record.getMessage()
    assert not record.exc_info


def test_a_gateway_that_is_down(logs: pytest.LogCaptureFixture) -> None:
    """One line says so, and the end is at once."""
    run = Run("http://127.0.0.1:9")  # the port to discard: nobody listens
    run.pusher.start()
    began = time.monotonic()

    run.end()

    assert run.failures == 2
    assert "Connection refused" in logs.text
    assert time.monotonic() - began < 2


@pytest.mark.alone
def test_a_gateway_that_hangs_holds_up_the_end_for_a_bounded_time(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, logs: pytest.LogCaptureFixture
) -> None:
    """Neither the start nor the end waits for what does not come."""
    monkeypatch.setattr(push, "END_SECONDS", 0.2)
    monkeypatch.setattr(push, "REQUEST_SECONDS", 0.4)
    gateway.answers.clear()
    run = Run(gateway.url)
    began = time.monotonic()

    run.pusher.start()
    started = time.monotonic() - began
    run.end("crashed")

    assert started < 0.15
    assert time.monotonic() - began < 0.6


def test_a_collector_of_the_users_that_raises_is_no_matter(
    gateway: Gateway, logs: pytest.LogCaptureFixture
) -> None:
    """It is logged with its traceback, and the thread goes on."""

    class Broken:
        def collect(self) -> list[object]:
            raise RuntimeError("mine")

    run = Run(gateway.url)
    run.registry.register(Broken())  # type: ignore[arg-type]
    run.pusher.start()
    run.end()

    assert run.failures == 2
    assert logs.records[0].exc_info
    assert ours() == []


@pytest.mark.parametrize("serve", [True, False])
def test_an_exporter_pushes_its_page(gateway: Gateway, serve: bool) -> None:
    """Whether it serves or not; `close` leaves no thread, and says how the run ended."""
    exporter = TrainingExporter(
        run="r", port=0, serve=serve, address="127.0.0.1", pushgateway=gateway.url
    ).start()
    first = gateway.next().body
    exporter.observe(StepSignals(1, 0.0, loss=float("nan")))
    exporter.finish()
    told = gateway.next().body

    exporter.close()

    counter = 'training_anomalies_total{kind="non_finite",rank="0",run="r"}'
    assert f"{counter} 0.0" in first
    assert "training_state" not in first
    assert f"{counter} 1.0" in told
    assert 'training_state{rank="0",run="r",state="completed"} 1.0' in told
    assert gateway.next().body.count("training_state{") == told.count("training_state{")
    assert ours() == []
    assert exporter.health.errors["lifecycle"] == 0


def test_an_exporter_that_nobody_holds_pushes_its_end(gateway: Gateway) -> None:
    """A Trainer that is built a second time in a notebook."""
    exporter = TrainingExporter(run="r", serve=False, pushgateway=gateway.url).start()
    gateway.next()
    del exporter

    assert 'state="stopped"} 1.0' in gateway.next().body


def test_ranks_that_serve_nothing_push_nothing(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The policy is one for both."""
    monkeypatch.setenv("RANK", "1")
    with TrainingExporter(ranks="zero", pushgateway=gateway.url) as exporter:
        assert exporter.port is None
    exporter.close()

    assert gateway.requests.empty()


@pytest.mark.parametrize(
    "address",
    ["localhost:9091", "ftp://gateway", "http://", "http://user:secret@gateway", "http://a b", " "],
)
def test_an_address_that_is_none_is_refused_at_the_start(address: str) -> None:
    """The message has one that would do."""
    with pytest.raises(ValueError, match=r"pushgateway must be .*http://localhost:9091"):
        ExporterConfig(pushgateway=address)


@pytest.mark.parametrize(
    "address", ["http://gateway:9091", "https://push.example.org/prefix/", "http://[::1]:9091"]
)
def test_addresses_that_will_do(address: str) -> None:
    """With a path, as behind a proxy, and without a name."""
    assert ExporterConfig(pushgateway=address).pushgateway == address


@pytest.mark.parametrize(
    ("settings", "deletes"),
    [({"linger": 0.2}, True), ({"linger": 0.0}, False), ({"pushgateway_cleanup": False}, False)],
)
def test_an_exporter_that_is_closed_with_patience_cleans_up(
    gateway: Gateway, settings: dict[str, Any], deletes: bool
) -> None:
    """After `linger` seconds; what would be deleted at once could not be scraped."""
    with TrainingExporter(serve=False, pushgateway=gateway.url, **settings) as exporter:
        gateway.next()

    exporter.close(linger=True)

    methods = [gateway.requests.get().method for _ in range(gateway.requests.qsize())]
    assert methods == ["PUT", "PUT"] + ["DELETE"] * deletes
