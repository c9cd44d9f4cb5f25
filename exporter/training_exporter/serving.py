# SPDX-License-Identifier: Apache-2.0
"""When the page of a run opens, who gets the port, and when it closes."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import sys
from contextlib import suppress
from functools import cache, partial
from typing import TYPE_CHECKING, ClassVar

from training_exporter import catalog
from training_exporter.boundary import StepBoundary
from training_exporter.config import ExporterConfig
from training_exporter.lifecycle.last_words import Scrapers, conclude_at_exit, linger

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from training_exporter.monitor import TrainingMonitor
    from training_exporter.status import StatusBoard
    from training_exporter.web.server import MetricsServer

logger = logging.getLogger("training_exporter")


class Serving:
    """Serves one run's page, from `start` until `close`, until another run of this process needs
    the port and this one is over, or until nobody holds the exporter any more.

    Neither this object nor the server's threads hold the exporter, so a Trainer that is built a
    second time in a notebook takes its predecessor's server along when it is collected. But the
    page of a run stays that somebody scrapes who has not seen its end yet.

    Args:
        config: where to serve.
        boundary: keeps trouble away from the training.
        registry: what `/metrics` shows.
        board, monitor: what the landing page shows.
    """

    _open: ClassVar[set[Serving]] = set()

    def __init__(
        self,
        config: ExporterConfig,
        boundary: StepBoundary,
        registry: CollectorRegistry,
        board: StatusBoard,
        monitor: TrainingMonitor,
    ) -> None:
        self._config = config
        self._boundary = boundary
        self._registry = registry
        self._board = board
        self._monitor = monitor
        self._scrapers = Scrapers(lambda: board.status.state in catalog.FINAL_STATES)
        self._abandoned = False
        self.server: MetricsServer | None = None

    def start(self) -> None:
        """Begin to serve, if that is configured and not done yet.

        Raises:
            OSError: no port could be had, with `strict` only; else a warning says so.
        """
        if not self._config.serve or self.server is not None:
            return
        if self._config.strict:
            self._listen()
            return
        with self._boundary.at(catalog.WEB_ERROR):
            try:
                self._listen()
            except OSError as error:
                if self._boundary.health.count_error(catalog.WEB_ERROR) == 1:
                    logger.warning("training goes on without its metrics being served: %s", error)

    def close(self) -> None:
        """Free the port. May be called twice, and `start` may follow."""
        Serving._open.discard(self)
        server, self.server = self.server, None
        if server is not None:
            server.close()

    def abandon(self) -> None:
        """Nobody holds the exporter any more, so the run is over; close when nobody waits for the
        page."""
        self._abandoned = True
        if self.server is not None:
            with self._boundary.at(catalog.LIFECYCLE_ERROR):
                conclude_at_exit(self._board, self._monitor, None)
                self._close_if_unwanted()

    def last_words(self) -> None:
        """The process ends: conclude the run, and stay until those who scrape it have seen that."""
        with self._boundary.at(catalog.LIFECYCLE_ERROR):
            conclude_at_exit(self._board, self._monitor, getattr(sys, "last_value", None))
            linger(self._scrapers, self._config.linger)

    def _listen(self) -> None:
        self._take_over_port()
        for other in list(Serving._open):
            other._close_if_unwanted()
        self.server = server = self._opened()
        Serving._open.add(self)
        _linger_at_exit()
        wanted = self._config.port
        if wanted in (0, server.port):
            logger.info("serving training metrics on %s", server.url)
        else:
            logger.warning("port %d is taken; serving training metrics on %s", wanted, server.url)

    def _close_if_unwanted(self) -> None:
        if self._abandoned and not self._scrapers.due(self._config.linger):
            self.close()

    def _take_over_port(self) -> None:
        """In a notebook the next run wants the port of the one before it, which is over."""
        if self._holders():
            gc.collect()  # it may be garbage already: a Trainer and its callbacks are a cycle
        for other in self._holders():
            if other._board.status.state in catalog.FINAL_STATES:
                logger.info("taking over port %d from the finished run", self._config.port)
                other.close()

    def _holders(self) -> list[Serving]:
        """Who holds the port that is wanted, in this process."""
        wanted = self._config.port
        return [other for other in Serving._open if other.server and other.server.port == wanted]

    def _opened(self) -> MetricsServer:
        from training_exporter.web.app import MetricsApp
        from training_exporter.web.landing_page import render
        from training_exporter.web.server import MetricsServer

        board, monitor, health = self._board, self._monitor, self._boundary.health
        app = MetricsApp(
            self._registry,
            lambda: render(board.status, monitor.snapshot, gpus=board.gpus(), memory=board.memory),
            ready=lambda: board.status.state != catalog.STARTING,
            on_error=partial(health.count_error, catalog.WEB_ERROR),
            on_scrape=health.add_scrape,
            on_scraper=self._scrapers.note,
        )
        config = self._config
        server = MetricsServer(
            app, address=config.address, port=config.port, port_tries=config.port_tries
        )
        server.start()
        return server


@cache
def _linger_at_exit() -> None:
    """Have the last words said, once, however many exporters there are."""
    process = os.getpid()

    def last_words() -> None:
        if os.getpid() != process:  # a forked child has no server
            return
        with suppress(KeyboardInterrupt):  # who presses Ctrl-C once more has no time
            for serving in list(Serving._open):
                serving.last_words()

    atexit.register(last_words)
