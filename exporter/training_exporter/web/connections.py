# SPDX-License-Identifier: Apache-2.0
"""waitress, with the bounds that a server inside a training process needs.

waitress reads and writes all connections in one loop and hands only complete requests to its
worker threads, so a slow client never holds a thread. What it lacks is a limit on how long a client
may take in all (a byte per second keeps a connection for ever) and room for a newcomer when all
connections are taken. Both are added here, by its own extension points.
"""

from __future__ import annotations

import errno
import logging
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from threading import Thread
from time import monotonic
from typing import TYPE_CHECKING, Any

from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.server import TcpWSGIServer
from waitress.task import ThreadedTaskDispatcher, WSGITask

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

MAX_CONNECTIONS = 128
BUSY_CONNECTIONS = 32
"""How many more there may be while none of the others can be given up; then newcomers wait."""
CONVERSATION_SECONDS = 10.0
"""From accepting a connection to the last byte of the answer; Prometheus waits no longer either."""
GRACE_SECONDS = 0.05
"""How long a new connection is safe from being given up: a scraper sends its request at once, but
on a busy machine at once takes a moment."""
PAUSE_SECONDS = 0.5
"""How long to accept nobody after accepting failed, mostly for want of file descriptors."""
IDLE_SECONDS, BUSY_SECONDS = 1.0, 0.05
"""How often the loop looks at the clock, without and with connections."""
MAX_REQUEST_BYTES = 16 * 1024
BACKLOG = 1024

# waitress warns of every disconnect and every queued request. None of that is the user's business.
logger = logging.getLogger("training_exporter.web")
_waitress_logger = logging.getLogger("training_exporter.web.waitress")


class Workers(ThreadedTaskDispatcher):  # type: ignore[misc]
    """A fixed number of named threads that run the application."""

    logger = queue_logger = _waitress_logger

    def __init__(self) -> None:
        if _waitress_logger.level == logging.NOTSET:
            _waitress_logger.setLevel(logging.ERROR)
        super().__init__()
        self._started: list[Thread] = []

    def start_new_thread(self, target: Callable[[int], object], thread_no: int) -> None:
        name = f"training-exporter-http-{thread_no}"
        thread = Thread(target=target, args=(thread_no,), name=name, daemon=True)
        thread.start()
        self._started.append(thread)

    def stop(self, timeout: float) -> bool:
        """Forget what is queued and end the threads; True when all of them have ended."""
        self.shutdown(timeout=timeout)
        deadline = monotonic() + 0.1 * timeout
        for thread in self._started:
            thread.join(max(0.0, deadline - monotonic()))
        return not any(thread.is_alive() for thread in self._started)


class _Task(WSGITask):  # type: ignore[misc]
    logger = _waitress_logger

    def start(self) -> None:
        super().start()
        # One request per connection: its age is then the age of the request.
        self.set_close_on_finish()


class _Channel(HTTPChannel):  # type: ignore[misc]
    """One connection."""

    task_class = _Task
    logger = _waitress_logger

    def __init__(self, *args: Any, **keywords: Any) -> None:
        self.opened = monotonic()
        super().__init__(*args, **keywords)


class Listener(TcpWSGIServer):  # type: ignore[misc]
    """The listening socket and all its connections. Lives in the thread of the loop."""

    channel_class = _Channel
    logger = _waitress_logger

    def __init__(self, app: WSGIApplication, sock: socket.socket, workers: Workers) -> None:
        self._paused_until = 0.0
        settings = Adjustments(
            sockets=[sock],
            backlog=BACKLOG,
            connection_limit=MAX_CONNECTIONS + BUSY_CONNECTIONS,
            max_request_header_size=MAX_REQUEST_BYTES,
            max_request_body_size=MAX_REQUEST_BYTES,
            # Answers stay in memory: a file of ours on a full disk would be an error of ours.
            outbuf_overflow=1 << 30,
            log_socket_errors=False,
            clear_untrusted_proxy_headers=False,
            ident="training-exporter",
        )
        super().__init__(
            app,
            map={},
            _sock=sock,
            dispatcher=workers,
            adj=settings,
            sockinfo=(sock.family, sock.type, sock.proto, sock.getsockname()),
            bind_socket=False,
        )

    def run_once(self) -> None:
        """One round: give up connections, wait for events, deal with them."""
        self._give_up_connections()
        patience = BUSY_SECONDS if self.active_channels else IDLE_SECONDS
        # poll rather than select, which fails on descriptors above 1023.
        wasyncore.loop(patience, use_poll=True, map=self._map, count=1)

    def must_listen(self) -> None:
        """Nothing, while there is something to wait for.

        Raises:
            OSError: somebody closed the socket, upon which waitress closed the trigger, too. The
                next round would wait for nothing and be over at once, and so on for ever.
        """
        if not self._map:
            raise OSError(errno.EBADF, "somebody else has closed the listening socket")

    def rouse(self) -> None:
        """Have a round end that waits. Called from other threads."""
        if self._map:  # or the trigger's descriptor may be a file of the training by now
            with suppress(OSError):
                self.pull_trigger()

    def readable(self) -> bool:
        return monotonic() >= self._paused_until and bool(super().readable())

    def _give_up_connections(self) -> None:
        """Close what has taken too long and, when all places are taken, the oldest.

        Only between two rounds of the loop: within one, the next connection could be given the
        descriptor of a closed one, and the event that the loop still holds for it. waitress's own
        `will_close` is no way either, since it waits for a client that reads.
        """
        now = monotonic()
        open_channels = list(self.active_channels.values())  # oldest first
        surplus = len(open_channels) - MAX_CONNECTIONS + 1
        for channel in open_channels:
            age = now - channel.opened
            if age < (GRACE_SECONDS if surplus > 0 else CONVERSATION_SECONDS):
                break
            if not channel.requests:  # no worker is at it
                channel.handle_close()
                surplus -= 1

    def accept(self) -> tuple[socket.socket, Any] | None:
        try:
            accepted: tuple[socket.socket, Any] | None = super().accept()
        except OSError:
            # The client is still in the queue, so that trying at once would spin.
            self._paused_until = monotonic() + PAUSE_SECONDS
            raise
        return accepted

    def handle_error(self) -> None:
        """Go on listening; the default is to close the socket for good."""
        self._paused_until = monotonic() + PAUSE_SECONDS
        logger.error("accepting a connection failed", exc_info=sys.exc_info())

    def close_connections(self) -> None:
        """Close the listening socket and all connections.

        The trigger stays: a worker that is still busy will pull it, and by then its descriptor's
        number could belong to a file of the training. `close` closes that too.
        """
        for channel in list(self.active_channels.values()):
            channel.handle_close()
        wasyncore.dispatcher.close(self)

    def abandon(self) -> None:
        """Let go of every descriptor in a forked child, where the threads that may hold the locks
        of the connections do not exist."""
        for channel in list(self.active_channels.values()):
            channel.socket.close()
        wasyncore.dispatcher.close(self)
        self.trigger.close()
