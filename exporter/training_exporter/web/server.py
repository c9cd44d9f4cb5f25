# SPDX-License-Identifier: Apache-2.0
"""Serves a WSGI application from daemon threads of the training process."""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address
from threading import Lock, Thread, current_thread
from typing import TYPE_CHECKING
from weakref import WeakSet

from training_exporter.web.connections import BACKLOG, Listener, Workers

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

logger = logging.getLogger("training_exporter.web")

HIGHEST_PORT = 65535
STOP_SECONDS = 2.0
_TRY_ANOTHER = (errno.EADDRINUSE, errno.EACCES)


class MetricsServer:
    """An HTTP server that takes the first free port of a range.

    The constructor binds, so that a taken port shows where it can still be handled; `start`
    serves. A forked child, a data-loader worker say, lets go of the sockets at once: it would
    otherwise keep the port taken, and leave clients hanging, after its parent has ended.

    Args:
        app: the application.
        address: a name or address of this machine; "0.0.0.0" and "::" are all of its interfaces.
        port: the port to take, 0 for any that is free.
        port_tries: how many ports to try, counted up from `port`.
        threads: how many requests are answered at the same time.
        wanted: asked by the loop again and again; once it says no, the server closes itself.

    Raises:
        OSError: the address cannot be bound, or all ports of the range are taken.
    """

    def __init__(
        self,
        app: WSGIApplication,
        *,
        address: str = "0.0.0.0",  # noqa: S104 - exporters are there to be scraped from elsewhere
        port: int = 10400,
        port_tries: int = 32,
        threads: int = 4,
        wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        self._app = app
        self._wanted = wanted
        self._threads = threads
        self._lock = Lock()
        self._closed = False
        self._listener: Listener | None = None
        self._workers: Workers | None = None
        self._loop: Thread | None = None
        self._socket = _bind(address, port, port_tries)
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://{_host_for_a_person(address)}:{self.port}"
        _servers.add(self)

    def start(self) -> None:
        """Begin to serve. Does nothing when the server already does, or is closed.

        Raises:
            OSError: the system grants no more threads.
        """
        with self._lock:
            if self._closed or self._loop is not None:
                return
            try:
                self._workers = Workers()
                self._listener = Listener(self._app, self._socket, self._workers)
                self._workers.set_thread_count(self._threads)
                self._loop = Thread(target=self._serve, name="training-exporter-http", daemon=True)
                self._loop.start()
            except RuntimeError as error:
                raise OSError(errno.EAGAIN, f"no thread for the metrics server: {error}") from error

    def wake(self) -> None:
        """Have the loop ask at once whether the server is still wanted. Takes no lock."""
        if self._listener is not None and not self._closed:
            self._listener.rouse()

    def close(self) -> None:
        """Free the port and end the threads. May be called at any time and more than once."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        if self._listener is None or self._workers is None:
            self._socket.close()
            return
        loop = self._loop
        if loop is not None and loop is not current_thread() and loop.ident is not None:
            self._listener.rouse()
            loop.join(STOP_SECONDS)
        self._listener.close_connections()
        if self._workers.stop(STOP_SECONDS):
            self._listener.close()

    def _serve(self) -> None:
        listener = self._listener
        assert listener is not None
        try:
            while not self._closed and self._wanted():
                listener.run_once()
                listener.must_listen()
        except (OSError, ValueError):  # someone has closed the descriptors under the loop
            if not self._closed:
                logger.exception("the metrics server at %s has stopped", self.url)
        self.close()

    def _abandon(self) -> None:
        """Let go of everything in a forked child. Takes no lock: who holds it is not here."""
        self._closed = True
        self._socket.close()
        if self._listener is not None:
            self._listener.abandon()


def _bind(address: str, port: int, tries: int) -> socket.socket:
    """A listening socket on the first free port of the range."""
    if not 0 <= port <= HIGHEST_PORT:
        raise OSError(errno.EINVAL, f"port must be 0 to {HIGHEST_PORT}, got {port}")
    last = port if port == 0 else min(port + max(1, tries) - 1, HIGHEST_PORT)
    candidate = port
    while True:
        try:
            return _listen(address, candidate)
        except OSError as error:
            if candidate == last or error.errno not in _TRY_ANOTHER:
                ports = f"port {port}" if candidate == port else f"ports {port} to {candidate}"
                reason = error.strerror or str(error)
                message = f"cannot serve metrics at {address}, {ports}: {reason}"
                raise OSError(error.errno, message) from error
        candidate += 1


def _listen(address: str, port: int) -> socket.socket:
    """Bind and listen; only both together tell whether a port is free."""
    host = address.strip("[]") or None  # the brackets of an IPv6 address in a URL
    try:
        choices = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except UnicodeError as error:
        raise OSError(errno.EINVAL, f"no name of a machine: {error}") from error
    # A name may stand for both families on a machine that has only the older one.
    family, kind, protocol, _, where = min(choices, key=lambda choice: choice[0] != socket.AF_INET)
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, host != "::")
        sock.bind(where)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _host_for_a_person(address: str) -> str:
    if not address:
        return "localhost"
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    if parsed.is_unspecified:
        return "localhost"
    return f"[{parsed}]" if parsed.version == 6 else str(parsed)


_servers: WeakSet[MetricsServer] = WeakSet()


def _abandon_all() -> None:
    for server in list(_servers):
        with suppress(OSError):
            server._abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_all)
