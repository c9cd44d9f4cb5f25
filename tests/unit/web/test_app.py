# SPDX-License-Identifier: Apache-2.0
"""The paths, methods and headers of the application."""

from __future__ import annotations

import gzip
import logging
from collections.abc import Callable
from typing import Any, NamedTuple
from wsgiref.validate import validator

import pytest
from prometheus_client import CollectorRegistry, Gauge

from training_exporter.web.app import MetricsApp


class Answer(NamedTuple):
    """What the application gave."""

    status: str
    headers: dict[str, str]
    body: bytes


class Site:
    """The application and what it reported."""

    def __init__(self, landing_page: Callable[[], str] = lambda: "<p>å run") -> None:
        self.registry = CollectorRegistry()
        Gauge("depth", "", registry=self.registry).set(2)
        Gauge("width", "", registry=self.registry).set(3)
        self.is_ready = True
        self.errors = 0
        self.scrapes: list[float] = []
        self.app = MetricsApp(
            self.registry,
            landing_page,
            ready=lambda: self.is_ready,
            on_error=self._error,
            on_scrape=self.scrapes.append,
        )

    def _error(self) -> None:
        self.errors += 1

    def ask(self, path: str, method: str = "GET", query: str = "", **headers: str) -> Answer:
        environ: dict[str, Any] = {
            "REQUEST_METHOD": method,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            **{f"HTTP_{name.upper()}": value for name, value in headers.items()},
        }
        given: list[Any] = []
        body = b"".join(self.app(environ, lambda *args: given.extend(args)))  # type: ignore[arg-type,return-value]
        return Answer(given[0], dict(given[1]), body)


@pytest.fixture
def site() -> Site:
    """An application over two gauges."""
    return Site()


def test_metrics(site: Site) -> None:
    """The metrics page has its type and its length, and its time is reported."""
    answer = site.ask("/metrics")
    assert answer.status == "200 OK"
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert answer.headers["Content-Length"] == str(len(answer.body))
    assert b"depth 2.0" in answer.body
    assert len(site.scrapes) == 1


def test_openmetrics(site: Site) -> None:
    """A client that accepts OpenMetrics gets it."""
    answer = site.ask("/metrics", accept="application/openmetrics-text;version=1.0.0")
    assert answer.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert answer.body.endswith(b"# EOF\n")


def test_gzip(site: Site) -> None:
    """A client that accepts gzip gets the same page packed."""
    packed = site.ask("/metrics", accept_encoding="gzip, deflate")
    assert packed.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(packed.body) == site.ask("/metrics").body


def test_names_filter(site: Site) -> None:
    """`?name[]=` leaves the named series only."""
    body = site.ask("/metrics", query="name%5B%5D=width").body
    assert b"width 3.0" in body
    assert b"depth" not in body


def test_landing_page(site: Site) -> None:
    """The landing page comes with headers that allow it nothing but its own style."""
    answer = site.ask("/")
    assert answer.body == "<p>å run".encode()
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert "script" not in answer.headers["Content-Security-Policy"]


def test_health_and_readiness(site: Site) -> None:
    """The server is healthy as soon as it answers; readiness is the run's to say."""
    assert site.ask("/-/healthy").status == "200 OK"
    assert site.ask("/-/ready").status == "200 OK"
    site.is_ready = False
    assert site.ask("/-/ready").status == "503 Service Unavailable"


@pytest.mark.parametrize("path", ["/", "/metrics", "/-/healthy", "/-/ready", "/nowhere"])
def test_head(site: Site, path: str) -> None:
    """HEAD gives what GET gives, without the body."""
    got, head = site.ask(path), site.ask(path, "HEAD")
    assert (head.status, head.headers) == (got.status, got.headers)
    assert head.body == b""


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE"])
def test_other_methods(site: Site, method: str) -> None:
    """All else is not allowed, and the answer says what is."""
    answer = site.ask("/metrics", method)
    assert answer.status == "405 Method Not Allowed"
    assert answer.headers["Allow"] == "GET, HEAD"


def test_unknown_path(site: Site) -> None:
    """A wrong path names the right ones."""
    answer = site.ask("/metric")
    assert answer.status == "404 Not Found"
    assert b"/, /metrics, /-/healthy, /-/ready" in answer.body


def test_failure(caplog: pytest.LogCaptureFixture) -> None:
    """A page that fails is a 500, counted each time, logged when it begins, and again once it
    has recovered and fails anew."""
    broken = [True, True, False, True]

    def page() -> str:
        if broken.pop(0):
            raise RuntimeError("secret detail")
        return "fine"

    site = Site(page)
    with caplog.at_level(logging.ERROR):
        answers = [site.ask("/") for _ in range(4)]
    assert [answer.status[:3] for answer in answers] == ["500", "500", "200", "500"]
    assert b"secret" not in answers[0].body
    assert site.errors == 3
    assert [bool(record.exc_info) for record in caplog.records] == [True, True]


def test_failed_scrape_is_timed(site: Site) -> None:
    """A scrape that fails took time as well."""

    class Broken:
        def collect(self) -> list[object]:
            raise RuntimeError

    site.registry.register(Broken())  # type: ignore[arg-type]
    assert site.ask("/metrics").status == "500 Internal Server Error"
    assert len(site.scrapes) == site.errors == 1


def test_conforms_to_wsgi(site: Site) -> None:
    """The standard library's validator has nothing to say."""
    environ = {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/metrics",
        "QUERY_STRING": "",
        "SERVER_NAME": "x",
        "SERVER_PORT": "1",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": _Stream(),
        "wsgi.errors": _Stream(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    answer = validator(site.app)(environ, lambda *_: lambda _: None)  # type: ignore[arg-type]
    try:
        assert b"".join(answer)
    finally:
        answer.close()  # type: ignore[attr-defined]


class _Stream:
    """The methods that the validator wants to see."""

    def read(self, *_: int) -> bytes:
        return b""

    readline = read

    def readlines(self, *_: int) -> list[bytes]:
        return []

    def __iter__(self) -> Any:
        return iter(())

    def write(self, _: str) -> None: ...

    def writelines(self, _: list[str]) -> None: ...

    def flush(self) -> None: ...
