# SPDX-License-Identifier: Apache-2.0
"""The server over real sockets: ports, bad clients, forks, and what is left when it closes."""

from __future__ import annotations

import gc
import http.client
import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from urllib.request import urlopen

import pytest
from prometheus_client import CollectorRegistry, Gauge

from training_exporter.web import connections
from training_exporter.web.app import MetricsApp
from training_exporter.web.server import MetricsServer, _servers

pytestmark = pytest.mark.e2e
Make = Callable[..., MetricsServer]


@pytest.fixture(autouse=True, scope="module")
def no_other_servers() -> None:
    """Those of other tests, whose exporters nobody holds any more but which are not collected yet,
    would be counted as ours."""
    gc.collect()
    for server in list(_servers):
        server.close()


def application(series: int = 10) -> MetricsApp:
    registry = CollectorRegistry()
    gauge = Gauge("depth", "", ["at"], registry=registry)
    for at in range(series):
        gauge.labels(str(at)).set(at)
    return MetricsApp(
        registry,
        lambda: "<p>run",
        ready=lambda: True,
        on_error=lambda: None,
        on_scrape=lambda _: None,
    )


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes servers on 127.0.0.1 that are closed at the end."""
    with ExitStack() as stack:

        def made(
            series: int = 10, *, port: int = 0, start: bool = True, **settings: int
        ) -> MetricsServer:
            server = MetricsServer(application(series), address="127.0.0.1", port=port, **settings)
            stack.callback(server.close)
            if start:
                server.start()
            return server

        yield made


def scrape(server: MetricsServer) -> float:
    """Scrape once, check the page, and return the seconds it took."""
    started = time.perf_counter()
    with urlopen(f"{server.url}/metrics", timeout=10) as answer:
        assert b"depth" in answer.read()
    return time.perf_counter() - started


def raw(server: MetricsServer, data: bytes) -> bytes:
    """Everything the server answers to some bytes."""
    with closing(connect(server)) as client:
        client.settimeout(10)
        client.sendall(data)
        parts = []
        try:
            while part := client.recv(65536):
                parts.append(part)
        except ConnectionResetError:
            pass
        return b"".join(parts)


def connect(server: MetricsServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=10)


def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def test_serves(make: Make) -> None:
    """All pages, by the address for a person."""
    server = make()
    assert server.url == f"http://127.0.0.1:{server.port}"
    scrape(server)
    with urlopen(server.url) as answer:
        assert answer.read() == b"<p>run"
        assert answer.headers["Connection"] == "close"
        assert answer.headers["Server"] == "training-exporter"


@pytest.mark.parametrize(
    ("address", "host"),
    [("0.0.0.0", "localhost"), ("", "localhost"), ("::", "localhost"), ("::1", "[::1]"),
     ("localhost", "localhost")],
)  # fmt: skip
def test_addresses(address: str, host: str) -> None:
    """IPv4, IPv6 and names; the address for a person is one that a browser can open."""
    if ":" in address and not has_ipv6():
        pytest.skip("this machine has no IPv6")
    with closing(MetricsServer(application(), address=address, port=0)) as server:
        server.start()
        assert server.url == f"http://{host}:{server.port}"
        scrape(server)


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_a_taken_port_means_the_next(make: Make) -> None:
    """Two runs on one machine both serve, before and after the first has started to."""
    first = make(start=False)
    second = make(port=first.port)
    assert first.port < second.port <= first.port + 31
    first.start()
    assert first.port < make(port=first.port).port
    scrape(first)
    scrape(second)


def test_all_ports_taken(make: Make) -> None:
    """The error names the address and the ports that were tried."""
    first = make()
    with pytest.raises(OSError, match=f"127.0.0.1, port {first.port}: Address already in use"):
        make(port=first.port, port_tries=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"address": "192.0.2.1"}, "192.0.2.1, port 0: Cannot assign requested address"),
        ({"address": "no such host"}, "cannot serve metrics at no such host"),
        ({"port": 65536}, "port must be 0 to 65535, got 65536"),
    ],
)
def test_impossible_addresses(settings: dict[str, int], message: str) -> None:
    """An address that is not of this machine is refused at once, and says so."""
    with pytest.raises(OSError, match=message):
        MetricsServer(application(), **{"port": 0, **settings})  # type: ignore[arg-type]


def test_head_and_post(make: Make) -> None:
    """HEAD has headers only; a POST with a body is refused and its connection closed."""
    server = make()
    head = raw(server, b"HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK")
    assert head.endswith(b"\r\n\r\n")
    post = raw(server, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello")
    assert post.startswith(b"HTTP/1.1 405")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"400"),
        (b"GET\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000, b"431"),
        (b"POST / HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n", b"413"),
        (b"GET /nowhere HTTP/1.0\r\n\r\n", b"404"),
    ],
)
def test_bad_requests(
    make: Make, data: bytes, status: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    """Garbage is answered with its status or cut off, nothing is printed, others are served."""
    server = make()
    answer = raw(server, data)
    assert answer == b"" or answer.split(b" ")[1] == status
    scrape(server)
    server.close()
    assert capfd.readouterr() == ("", "")


def test_a_client_that_hangs_up(make: Make, capfd: pytest.CaptureFixture[str]) -> None:
    """A client that leaves in the middle of an answer or of a request is no event."""
    server = make(20_000)
    for data in (b"GET /metrics HTTP/1.1\r\n\r\n", b"GET /met"):
        with closing(connect(server)) as client:
            client.sendall(data)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    scrape(server)
    server.close()
    assert capfd.readouterr() == ("", "")


@pytest.mark.alone
def test_half_a_request_has_a_deadline(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that sends a byte now and then is cut off all the same."""
    monkeypatch.setattr(connections, "CONVERSATION_SECONDS", 0.3)
    with closing(connect(make())) as client:
        started = time.monotonic()
        with pytest.raises(OSError, match=r"reset|pipe"):
            dribble(client, 200)
        assert time.monotonic() - started < 3


def dribble(client: socket.socket, times: int) -> None:
    for _ in range(times):
        client.sendall(b"G")
        time.sleep(0.02)


@pytest.mark.alone
def test_a_client_that_does_not_read_has_a_deadline(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that is not taken is not kept."""
    monkeypatch.setattr(connections, "CONVERSATION_SECONDS", 0.3)
    server = make(100_000)
    with closing(socket.socket()) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", server.port))
        client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert server._listener is not None
        channels = server._listener.active_channels
        wait_for(lambda: len(channels) == 1)
        wait_for(lambda: len(channels) == 0)


def test_hostile_connections_leave_room(make: Make) -> None:
    """200 connections that say nothing and 100 that dribble do not delay a scrape."""
    server = make()
    with ExitStack() as stack:
        idle = [stack.enter_context(closing(connect(server))) for _ in range(200)]
        dribblers = [stack.enter_context(closing(connect(server))) for _ in range(100)]
        stop = threading.Event()

        def dribble_on() -> None:
            while not stop.wait(0.02):
                for client in dribblers:
                    with suppress(OSError):
                        client.sendall(b"G")

        thread = threading.Thread(target=dribble_on)
        thread.start()
        try:
            slowest = max(scrape(server) for _ in range(20))
        finally:
            stop.set()
            thread.join()
        assert slowest < 1.5
        most = connections.MAX_CONNECTIONS + connections.BUSY_CONNECTIONS
        assert len(server._listener.active_channels) <= most  # type: ignore[union-attr]
        assert idle[0].recv(1) == b"", "the oldest had to go"


def test_a_newcomer_outlives_the_one_it_replaces(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that gets the descriptor of one just given up does not share its end."""
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 4)
    monkeypatch.setattr(connections, "GRACE_SECONDS", 0.0)
    server = make(start=False)
    listener = connections.Listener(application(), server._socket, connections.Workers())
    with ExitStack() as stack:
        stack.callback(listener.close)
        for _ in range(3):
            stack.enter_context(closing(connect(server)))
            listener.run_once()
        for _ in range(2):
            stack.enter_context(closing(connect(server)))
        for _ in range(2):
            listener.run_once()
            assert len(listener.active_channels) == 4
        listener.close_connections()


def test_a_crowd_that_keeps_coming(make: Make) -> None:
    """While hundreds of connections a second come and are given up, no scrape is cut off."""
    server = make()
    stop = threading.Event()

    def crowd() -> None:
        clients: deque[socket.socket] = deque()
        while not stop.wait(0.005):
            clients.extend(connect(server) for _ in range(10))
            while len(clients) > 200:
                clients.popleft().close()
        for client in clients:
            client.close()

    thread = threading.Thread(target=crowd)
    thread.start()
    try:
        wait_for(lambda: len(server._listener.active_channels) >= connections.MAX_CONNECTIONS - 1)  # type: ignore[union-attr]
        assert max(scrape(server) for _ in range(100)) < 2.0
    finally:
        stop.set()
        thread.join()


def test_many_scrapers_at_once(make: Make) -> None:
    """More scrapers than threads are all answered."""
    server = make(200)
    times: list[float] = []
    threads = [threading.Thread(target=lambda: times.append(scrape(server))) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(times) == 40


def test_no_descriptors_left(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """When accepting fails for want of descriptors, the loop waits instead of spinning."""
    server = make()
    tries: list[float] = []
    accept = socket.socket.accept

    def failing(self: socket.socket) -> object:
        tries.append(time.monotonic())
        if len(tries) < 3:
            raise OSError(24, "Too many open files")
        return accept(self)

    monkeypatch.setattr(connections, "PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(socket.socket, "accept", failing)
    scrape(server)
    assert tries[2] - tries[0] >= 0.1


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_child_lets_go(make: Make) -> None:
    """A data-loader worker that outlives its parent's server keeps neither port nor connection."""
    server = make()
    scrape(server)
    with closing(connect(server)) as client:
        wait_for(lambda: len(server._listener.active_channels) == 1)  # type: ignore[union-attr]
        child = os.fork()
        if child == 0:  # pragma: no cover - the child
            signal.pause()
            os._exit(0)
        try:
            scrape(server)
            server.close()
            assert client.recv(1) == b""
            make(port=server.port, port_tries=1)
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_child_may_close(make: Make) -> None:
    """A child that closes what it inherited, at its exit say, ends well and hurts nobody."""
    server = make()
    child = os.fork()
    if child == 0:  # pragma: no cover - the child
        server.start()
        server.close()
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    scrape(server)


@pytest.mark.alone
def test_close(make: Make) -> None:
    """Closing is prompt, may be repeated, and frees the port for the next server."""
    for start in (True, False):
        server = make(start=start)
        client = connect(server)
        started = time.monotonic()
        server.close()
        assert time.monotonic() - started < 1
        server.close()
        server.start()
        client.close()
        again = make(port=server.port, port_tries=1)
        assert again.port == server.port
        again.close()


def test_a_socket_that_somebody_else_closes(make: Make, logs: pytest.LogCaptureFixture) -> None:
    """The server says that it has stopped, and neither spins nor raises when it is closed."""
    server = make()
    server._socket.close()
    server.wake()
    wait_for(lambda: not ours())

    server.wake()
    server.close()

    assert [record.getMessage() for record in logs.records] == [
        f"the metrics server at {server.url} has stopped"
    ]


@pytest.mark.alone
def test_close_does_not_wait_for_a_page_that_hangs(make: Make) -> None:
    """A collector that never returns costs two seconds at the end, no more."""
    server = make()
    release, entered = threading.Event(), threading.Event()

    class Hanging:
        def collect(self) -> list[object]:
            entered.set()
            release.wait()
            return []

    server._app._registry.register(Hanging())  # type: ignore[attr-defined]
    with closing(connect(server)) as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert entered.wait(5)
        started = time.monotonic()
        server.close()
        assert time.monotonic() - started < 4
        release.set()
        wait_for(lambda: not ours())
        server._listener.trigger.close()  # type: ignore[union-attr]  # left open on purpose


def ours() -> list[str]:
    """Our threads."""
    return [t.name for t in threading.enumerate() if t.name.startswith("training-exporter-http")]


def test_nothing_is_left_behind() -> None:
    """Twenty servers come and go without leaving a thread or a descriptor."""
    gc.collect()
    before = os.listdir("/proc/self/fd")
    for _ in range(20):
        with closing(MetricsServer(application(), address="127.0.0.1", port=0)) as server:
            server.start()
            assert len(ours()) == 5
            scrape(server)
        assert ours() == []
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_port_is_reusable_after_a_broken_connection(make: Make) -> None:
    """Connections that linger in the kernel do not keep the port."""
    server = make()
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.request("GET", "/metrics")
    server.close()
    connection.close()
    assert make(port=server.port, port_tries=1).port == server.port


def test_the_users_log_of_waitress_is_left_alone(make: Make) -> None:
    """Only our own server is quiet; an application that uses waitress itself keeps its log."""
    import logging

    make()
    assert logging.getLogger("waitress").level == logging.NOTSET
