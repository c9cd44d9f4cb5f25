# SPDX-License-Identifier: Apache-2.0
"""When the page of a run opens, who gets the port, and when it closes."""

from __future__ import annotations

import gc
import logging
from functools import partial
from typing import TYPE_CHECKING, ClassVar
from weakref import WeakSet, finalize

from training_exporter import catalog
from training_exporter.boundary import StepBoundary
from training_exporter.config import ExporterConfig

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from training_exporter.monitor import TrainingMonitor
    from training_exporter.status import StatusBoard
    from training_exporter.web.server import MetricsServer

logger = logging.getLogger("training_exporter")


class Serving:
    """Serves one run's page, from `start` until `close`, until nobody holds this object any more,
    or until another run of this process needs the port and this one is over.

    What the server's threads hold is the board, the monitor and the registry, and not this object
    nor the exporter; a Trainer that is built a second time in a notebook thereby takes its
    predecessor's server along when it is collected.

    Args:
        config: where to serve.
        boundary: keeps trouble away from the training.
        registry: what `/metrics` shows.
        board, monitor: what the landing page shows.
    """

    _open: ClassVar[WeakSet[Serving]] = WeakSet()

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
        self._closing: finalize[[], Serving] | None = None
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
        self.server = None
        if self._closing is not None:
            self._closing()
            self._closing = None

    def _listen(self) -> None:
        self._take_over_port()
        self.server = server = self._opened()
        self._closing = finalize(self, server.close)
        self._closing.atexit = False  # the process ends, and the port with it
        Serving._open.add(self)
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
            lambda: render(board.status, monitor.snapshot),
            ready=lambda: board.status.state != catalog.STARTING,
            on_error=partial(health.count_error, catalog.WEB_ERROR),
            on_scrape=health.add_scrape,
        )
        config = self._config
        server = MetricsServer(
            app, address=config.address, port=config.port, port_tries=config.port_tries
        )
        server.start()
        return server
