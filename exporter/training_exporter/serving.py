# SPDX-License-Identifier: Apache-2.0
"""When the page of a run opens, who gets the port, and when it closes."""

from __future__ import annotations

import gc
import logging
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from training_exporter import catalog
from training_exporter.boundary import StepBoundary
from training_exporter.config import ExporterConfig
from training_exporter.lifecycle.at_exit import come_first, do_at_exit
from training_exporter.lifecycle.last_words import Scrapers, conclude_at_exit, last_error, linger
from training_exporter.lifecycle.ranks import Placement, first_port, serves, whole_number
from training_exporter.sinks.feed import SinkFeed

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from training_exporter.lifecycle.push import Pusher
    from training_exporter.lifecycle.targets import TargetKeeper
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
        sinks: who else is to be told of the end.
    """

    _open: ClassVar[set[Serving]] = set()

    def __init__(
        self,
        config: ExporterConfig,
        boundary: StepBoundary,
        registry: CollectorRegistry,
        board: StatusBoard,
        monitor: TrainingMonitor,
        sinks: SinkFeed | None = None,
    ) -> None:
        self._config = config
        self._boundary = boundary
        self._registry = registry
        self._board = board
        self._monitor = monitor
        self._sinks = sinks
        self._tells_end = config.blackbox_dir is not None or sinks is not None
        self._scrapers = Scrapers(lambda: board.status.state in catalog.FINAL_STATES)
        self._abandoned = False
        self._pusher: Pusher | None = None
        self._target: TargetKeeper | None = None
        self.server: MetricsServer | None = None
        if sinks is not None:
            sinks.after_start(come_first)  # else W&B is gone at the end before all is told to it
        self._expect_end()  # here, since a loop that is not served may never call `start`

    def start(self) -> None:
        """Begin to serve and to push, as far as that is configured and not done yet.

        Raises:
            OSError: no port could be had, with `strict` only; else a warning says so.
        """
        self._expect_end()  # once more, in case this is a forked child
        self._start_pushing()
        if self.server is not None or not self._is_meant_to_serve():
            return
        if self._config.strict:
            self._listen()
            return
        with self._boundary.at(catalog.WEB_ERROR):
            try:
                self._listen()
            except OSError as error:
                if self._boundary.health.count_error(catalog.WEB_ERROR) == 1:
                    logger.warning(
                        "training goes on without its metrics being served: %s; see the settings "
                        "address, port and port_tries",
                        error.strerror or error,
                    )

    def _expect_end(self) -> None:
        """Have a black box or sinks be told when the process ends."""
        if self._tells_end:
            Serving._open.add(self)
            do_at_exit(Serving.last_words)

    def close(self, *, cleanup: bool = False) -> None:
        """Free the port, and push the page if the run is over. May be called twice, and `start` may
        follow.

        Args:
            cleanup: stay until what a completed run has pushed is deleted, if that is configured.
        """
        if not self._tells_end:
            Serving._open.discard(self)
        self._withdraw()
        server, self.server = self.server, None
        if server is not None:
            server.close()
        pusher, self._pusher = self._pusher, None
        if pusher is not None:
            pusher.leave(cleanup=cleanup)
            pusher.wait()

    def tell_end(self) -> None:
        """The run is over. What is pushed need not wait for the end of the process."""
        if self._pusher is not None:
            self._pusher.tell()

    def abandon(self) -> None:
        """Nobody holds the exporter any more, so the run is over.

        Called by a garbage collection, in whatever thread it runs, and so does next to nothing: the
        server's own loop closes once nobody waits for the page.
        """
        self._abandoned = True
        if self.server is not None:
            self.server.wake()
        if self._pusher is not None:
            self._pusher.leave(cleanup=True)
        if self.server is None and self._tells_end:
            with self._boundary.at(catalog.LIFECYCLE_ERROR):
                self._conclude_abandoned()
            Serving._open.discard(self)

    def await_last_scrape(self) -> None:
        """Stay until those who scrape this page have seen the end of the run, or a bounded time has
        passed."""
        if self.server is not None:
            linger(self._due, self._config.linger)

    def _due(self) -> float:
        return self._scrapers.due(self._config.linger) if self.server is not None else 0.0

    def _is_wanted(self) -> bool:
        """Whether the server should go on. Asked by its loop, again and again."""
        if not self._abandoned:
            return True
        self._conclude_abandoned()
        if self._due() > 0.0:
            return True
        Serving._open.discard(self)
        self._withdraw()
        return False

    def _conclude_abandoned(self) -> None:
        conclude_at_exit(self._board, self._monitor, None)
        if self._sinks is not None:
            self._sinks.leave()

    @classmethod
    def last_words(cls) -> None:
        """The process ends: conclude its runs, and stay until their scrapers have seen that and
        what is to be pushed has been."""
        serving = list(cls._open)
        error = last_error()
        for each in serving:
            with each._boundary.at(catalog.LIFECYCLE_ERROR):
                conclude_at_exit(each._board, each._monitor, error)
                if each._pusher is not None:
                    each._pusher.leave(cleanup=True)
        with suppress(KeyboardInterrupt):  # who presses Ctrl-C once more has no time
            linger(
                lambda: max([0.0, *[each._due() for each in serving]]),
                max([0.0, *[each._config.linger for each in serving]]),
            )
            for each in serving:
                if each._pusher is not None:
                    each._pusher.wait()
            SinkFeed.wait_for_all()
        SinkFeed.give_up_all()
        for each in serving:
            each._withdraw()

    def _start_pushing(self) -> None:
        config = self._config
        if config.pushgateway is None or self._pusher is not None:
            return
        if not serves(config.ranks, self._placement()):
            return
        from training_exporter.lifecycle.push import Pusher, PushSettings

        # Nobody could scrape what is deleted at once.
        cleanup_seconds = config.linger or None if config.pushgateway_cleanup else None
        with self._boundary.at(catalog.LIFECYCLE_ERROR):
            pusher = Pusher(
                PushSettings(config.pushgateway, cleanup_seconds),
                self._registry,
                labels=lambda: self._board.status.labels,
                state=self._state,
                on_failure=partial(self._boundary.health.count_error, catalog.LIFECYCLE_ERROR),
            )
            pusher.start()
            self._pusher = pusher
            Serving._open.add(self)
            do_at_exit(Serving.last_words)

    def _state(self) -> str:
        """The state of the run, which is over when nobody can go on with it."""
        if self._abandoned:
            self._conclude_abandoned()
        return self._board.status.state

    def _listen(self) -> None:
        self._take_over_port()
        self.server = server = self._opened()
        Serving._open.add(self)
        do_at_exit(Serving.last_words)
        self.announce()
        wanted = self._wanted_port()
        if wanted in (0, server.port):
            logger.info("serving training metrics on %s", server.url)
        else:
            logger.warning("port %d is taken; serving training metrics on %s", wanted, server.url)

    def announce(self) -> None:
        """Have the target file, if one is configured, say where the page is and whose it is."""
        server, folder = self.server, self._config.sd_dir
        if server is None or folder is None:
            return
        with self._boundary.at(catalog.LIFECYCLE_ERROR):
            from training_exporter.lifecycle.targets import Target, TargetKeeper, target_host

            status, config = self._board.status, self._config
            if self._target is None:
                count = partial(self._boundary.health.count_error, catalog.LIFECYCLE_ERROR)
                self._target = TargetKeeper(Path(folder), count)
            host = target_host(config.address, config.sd_address)
            self._target.publish(Target(status.run, status.rank, host, server.port))

    def _withdraw(self) -> None:
        """Take the target file away, since the page goes."""
        target, self._target = self._target, None
        if target is not None:
            target.remove()

    def _placement(self) -> Placement:
        """Where this process is, as the integration has told or else the launcher."""
        status = self._board.status
        return Placement(status.rank, whole_number(status.info.get("local_rank", "")) or 0)

    def _is_meant_to_serve(self) -> bool:
        return self._config.serve and serves(self._config.ranks, self._placement())

    def _wanted_port(self) -> int:
        return first_port(self._config.port, self._placement())

    def _take_over_port(self) -> None:
        """In a notebook the next run wants the port of the one before it, which is over."""
        if self._holders():
            gc.collect()  # it may be garbage already: a Trainer and its callbacks are a cycle
        for other in self._holders():
            if other._abandoned or other._board.status.state in catalog.FINAL_STATES:
                logger.info("taking over port %d from the finished run", self._wanted_port())
                other.await_last_scrape()
                other.close()
                self._scrapers.expect(other._scrapers)

    def _holders(self) -> list[Serving]:
        """Who holds the port that is wanted, in this process."""
        wanted = self._wanted_port()
        held = [other for other in list(Serving._open) if other.server]
        return [other for other in held if other.server and other.server.port == wanted]

    def _opened(self) -> MetricsServer:
        from training_exporter.web.pages import pages_of
        from training_exporter.web.server import MetricsServer

        config = self._config
        server = MetricsServer(
            pages_of(
                self._registry, self._board, self._monitor, self._boundary.health,
                on_scraper=self._scrapers.note, debug_stack=config.debug_stack,
            ),
            address=config.address,
            port=self._wanted_port(),
            port_tries=config.port_tries,
            wanted=self._is_wanted,
        )  # fmt: skip
        server.start()
        return server
