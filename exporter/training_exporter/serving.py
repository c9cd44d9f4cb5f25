# SPDX-License-Identifier: Apache-2.0
"""When the page of a run opens, who gets the port, and when it closes."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import sys
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from training_exporter import catalog
from training_exporter.boundary import StepBoundary
from training_exporter.config import ExporterConfig
from training_exporter.lifecycle.last_words import Scrapers, conclude_at_exit, last_error, linger

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
    second time in a notebook takes its predecessor's server along when it is collected. In each
    case but `close` the page stays until those who scrape it have seen the end of the run, or a
    bounded time has passed.

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
        """Nobody holds the exporter any more, so the run is over.

        Called by a garbage collection, in whatever thread it runs, and so does next to nothing: the
        server's own loop closes once nobody waits for the page.
        """
        self._abandoned = True
        if self.server is not None:
            self.server.wake()

    def await_last_scrape(self) -> None:
        """Stay until those who scrape this page have seen the end of the run, or a bounded time has
        passed."""
        if self.server is not None:
            linger(self._due, self._config.linger)

    def _due(self) -> float:
        return self._scrapers.due(self._config.linger)

    def _is_wanted(self) -> bool:
        """Whether the server should go on. Asked by its loop, again and again."""
        if not self._abandoned:
            return True
        conclude_at_exit(self._board, self._monitor, None)
        if self._due() > 0.0:
            return True
        Serving._open.discard(self)
        return False

    @classmethod
    def last_words(cls) -> None:
        """The process ends: conclude its runs, and stay until their scrapers have seen that."""
        serving = list(cls._open)
        error = last_error()
        for each in serving:
            with each._boundary.at(catalog.LIFECYCLE_ERROR):
                conclude_at_exit(each._board, each._monitor, error)
        with suppress(KeyboardInterrupt):  # who presses Ctrl-C once more has no time
            linger(
                lambda: max([0.0, *[each._due() for each in serving]]),
                max([0.0, *[each._config.linger for each in serving]]),
            )

    def _listen(self) -> None:
        self._take_over_port()
        self.server = server = self._opened()
        Serving._open.add(self)
        _say_last_words_at_exit()
        wanted = self._config.port
        if wanted in (0, server.port):
            logger.info("serving training metrics on %s", server.url)
        else:
            logger.warning("port %d is taken; serving training metrics on %s", wanted, server.url)

    def _take_over_port(self) -> None:
        """In a notebook the next run wants the port of the one before it, which is over."""
        if self._holders():
            gc.collect()  # it may be garbage already: a Trainer and its callbacks are a cycle
        for other in self._holders():
            if other._abandoned or other._board.status.state in catalog.FINAL_STATES:
                logger.info("taking over port %d from the finished run", self._config.port)
                other.await_last_scrape()
                other.close()
                self._scrapers.expect(other._scrapers)

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
            lambda: render(
                board.status,
                monitor.snapshot,
                gpus=board.gpus(),
                memory=board.memory,
                layers=board.layers.view(),
            ),
            ready=lambda: board.status.state != catalog.STARTING,
            on_error=partial(health.count_error, catalog.WEB_ERROR),
            on_scrape=health.add_scrape,
            on_scraper=self._scrapers.note,
        )
        config = self._config
        server = MetricsServer(
            app,
            address=config.address,
            port=config.port,
            port_tries=config.port_tries,
            wanted=self._is_wanted,
        )
        server.start()
        return server


_registered_in: int | None = None


def _say_last_words_at_exit() -> None:
    """Have them said once in this process, however many exporters there are."""
    global _registered_in
    process = os.getpid()
    if _registered_in == process:  # a forked child inherits it, and may have an exporter of its own
        return
    _registered_in = process

    said: list[bool] = []

    def at_exit() -> None:
        if os.getpid() == process and not said:  # multiprocessing calls it in the main process too
            said.append(True)
            Serving.last_words()

    atexit.register(at_exit)
    multiprocessing = sys.modules.get("multiprocessing.util")
    if multiprocessing is not None:  # whose forked children end without what atexit knows
        multiprocessing.Finalize(None, at_exit, exitpriority=0)
