# SPDX-License-Identifier: Apache-2.0
"""The application: which path gives what."""

from __future__ import annotations

import gzip
import logging
from collections.abc import Callable, Iterable
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qs

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import gzip_accepted

from training_exporter.web.exposition import render
from training_exporter.web.pacing import Paced

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

logger = logging.getLogger("training_exporter.web")

TEXT = "text/plain; charset=utf-8"
HTML = "text/html; charset=utf-8"
SCRAPER_HEADER = "HTTP_X_PROMETHEUS_SCRAPE_TIMEOUT_SECONDS"
"""Prometheus and all that scrape like it send it; a person with curl does not."""
GZIP_LEVEL = 3
"""A twentieth of the bytes, as level 9 gives, in a third of its time."""
STACK_PATH = "/debug/stack"
STACK_IS_OFF = "not turned on; set debug_stack=True or TRAINING_EXPORTER_DEBUG_STACK=1"
SAFETY = (
    ("Cache-Control", "no-store"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    (
        "Content-Security-Policy",
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
)


class Response(NamedTuple):
    """What to answer."""

    status: str
    content_type: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


def _text(status: str, line: str, *headers: tuple[str, str]) -> Response:
    return Response(status, TEXT, f"{line}\n".encode(), headers)


class MetricsApp:
    """The WSGI application. Nothing that goes wrong in it leaves it.

    Args:
        registry: what `/metrics` shows.
        landing_page: draws the HTML page.
        ready: whether the run is under way.
        on_error: called whenever an answer could not be made.
        on_scrape: called with the seconds that drawing a metrics page took.
        on_scraper: called with a name for a scraper, before a page is drawn for it.
        stack: draws the text of `/debug/stack`; None when that is turned off.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        landing_page: Callable[[], str],
        *,
        ready: Callable[[], bool],
        on_error: Callable[[], object],
        on_scrape: Callable[[float], object],
        on_scraper: Callable[[str], object] = str,
        stack: Callable[[], str] | None = None,
    ) -> None:
        self._registry = registry
        self._landing_page = landing_page
        self._ready = ready
        self._on_error = on_error
        self._on_scrape = on_scrape
        self._on_scraper = on_scraper
        self._failing: set[str] = set()
        self._metrics_pages = Paced[Response]()
        self._landing_pages = Paced[Response]()
        self._pages: dict[str, Callable[[WSGIEnvironment], Response]] = {
            "/": self._landing,
            "/metrics": self._metrics,
            "/-/healthy": self._healthy,
            "/-/ready": self._readiness,
        }
        if stack is not None:
            self._pages[STACK_PATH] = lambda _: _text("200 OK", stack())

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        response = self._respond(environ)
        headers = [
            ("Content-Type", response.content_type),
            ("Content-Length", str(len(response.body))),
            *response.headers,
            *SAFETY,
        ]
        start_response(response.status, headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [response.body]

    def _respond(self, environ: WSGIEnvironment) -> Response:
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return _text("405 Method Not Allowed", "only GET and HEAD", ("Allow", "GET, HEAD"))
        path = environ.get("PATH_INFO", "") or "/"
        page = self._pages.get(path)
        if page is None:
            there_are = f"not here; there are {', '.join(self._pages)}"
            return _text("404 Not Found", STACK_IS_OFF if path == STACK_PATH else there_are)
        try:
            response = page(environ)
        except Exception as error:  # the boundary of the web: the client gets a 500
            self._note_failure(path, error)
            return _text("500 Internal Server Error", "this page failed; the log says why")
        self._failing.discard(path)
        return response

    def _note_failure(self, path: str, error: Exception) -> None:
        self._on_error()
        if path not in self._failing:
            logger.error("the page %s failed", path, exc_info=error)
        self._failing.add(path)

    def _metrics(self, environ: WSGIEnvironment) -> Response:
        if SCRAPER_HEADER in environ:
            # Two that scrape from one address, as from behind one gateway, often differ in version.
            who = environ.get("REMOTE_ADDR", ""), environ.get("HTTP_USER_AGENT", "")
            self._on_scraper(" ".join(who))
        names = tuple(parse_qs(environ.get("QUERY_STRING", "")).get("name[]", ()))
        accept = environ.get("HTTP_ACCEPT", "")
        packed = gzip_accepted(environ.get("HTTP_ACCEPT_ENCODING", ""))
        return self._metrics_pages.get(
            (names, accept, packed), lambda: self._metrics_page(names, accept, packed)
        )

    def _metrics_page(self, names: tuple[str, ...], accept: str, packed: bool) -> Response:
        started = perf_counter()
        try:
            shown = self._registry.restricted_registry(names) if names else self._registry
            page, content_type = render(shown, accept)
            if not packed:
                return Response("200 OK", content_type, page)
            small = gzip.compress(page, GZIP_LEVEL, mtime=0)
            return Response("200 OK", content_type, small, (("Content-Encoding", "gzip"),))
        finally:
            self._on_scrape(perf_counter() - started)

    def _landing(self, _: WSGIEnvironment) -> Response:
        return self._landing_pages.get(
            "", lambda: Response("200 OK", HTML, self._landing_page().encode())
        )

    def _healthy(self, _: WSGIEnvironment) -> Response:
        return _text("200 OK", "healthy")

    def _readiness(self, _: WSGIEnvironment) -> Response:
        if self._ready():
            return _text("200 OK", "ready")
        return _text("503 Service Unavailable", "not yet")
