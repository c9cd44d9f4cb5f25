# SPDX-License-Identifier: Apache-2.0
"""Telling a Pushgateway of a run: its counters at the start, its whole page at the end.

A job may be over before anybody has scraped it; what it leaves in a Pushgateway is scraped there.
At the start only counters are pushed, so that `increase()` sees the first event. A state or a gauge
from the start would stay in the gateway for ever if the process were killed, and look alive.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from http.client import HTTPException
from queue import Empty, SimpleQueue
from threading import Thread, current_thread
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.error import HTTPError
from weakref import WeakSet

from prometheus_client import delete_from_gateway, push_to_gateway

from training_exporter.catalog import COMPLETED, FINAL_STATES

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client import Metric as Family

logger = logging.getLogger("training_exporter")

JOB: Final = "training"
REQUEST_SECONDS: Final = 3.0
"""A gateway that says nothing for so long is given up."""
END_SECONDS: Final = 5.0
"""A push holds up the end of a process for no longer, whatever the gateway does."""
MAX_REASON: Final = 200

_CUMULATIVE = frozenset({"counter", "histogram"})
_GATEWAY_IN_TROUBLE = (OSError, HTTPException)


class PushSettings(NamedTuple):
    """Where to push, and what becomes of it.

    Attributes:
        gateway: address of the gateway.
        cleanup_seconds: how long the end of a completed run is left there to be scraped before it
            is deleted; None deletes nothing.
    """

    gateway: str
    cleanup_seconds: float | None


class _Order(NamedTuple):
    last: bool
    cleanup: bool


class Pusher:
    """Pushes one run's page from a thread of its own, so that no gateway holds up the training.

    The group in the gateway is `job="training"` with the run's own labels `run` and `rank`, which
    the series carry already. A push replaces the whole group, so what an earlier process of the run
    left there goes with the first one. Trouble is one warning, and counted each time.

    Args:
        settings: where to push.
        registry: what is pushed.
        labels: returns the labels of the run.
        state: returns the state of the run, one of catalog.RUN_STATES.
        on_failure: called for each push that failed.
    """

    def __init__(
        self,
        settings: PushSettings,
        registry: CollectorRegistry,
        labels: Callable[[], Mapping[str, str]],
        state: Callable[[], str],
        on_failure: Callable[[], object],
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._labels = labels
        self._state = state
        self._on_failure = on_failure
        self._warned = False
        self._group: dict[str, str] | None = None
        self._completed_at: float | None = None
        self._deadline = 0.0
        # Not an Event: `leave` may be called by the garbage collector, in whatever thread it runs,
        # and an Event's lock may be held there. A SimpleQueue is made for that.
        self._orders: SimpleQueue[_Order] = SimpleQueue()
        self._thread: Thread | None = None
        _all.add(self)

    def start(self) -> None:
        """Push the counters, without waiting for it, if that is not done yet.

        Raises:
            RuntimeError: the system grants no more threads.
        """
        if self._thread is None:
            thread = Thread(target=self._run, name="training-exporter-push", daemon=True)
            thread.start()
            self._thread = thread

    def tell(self) -> None:
        """If the run is over, push its page, without waiting for it."""
        self._orders.put(_Order(last=False, cleanup=False))

    def leave(self, *, cleanup: bool) -> None:
        """As `tell`, for the last time. Neither locks nor waits; `wait` does that.

        Args:
            cleanup: delete the group of a completed run once it could be scraped, if that is set.
        """
        self._orders.put(_Order(last=True, cleanup=cleanup))
        seconds = self._settings.cleanup_seconds if cleanup else None
        self._deadline = monotonic() + END_SECONDS + (seconds or 0.0)

    def wait(self) -> None:
        """After `leave`, until all is done or a bounded time has passed: END_SECONDS, and
        `cleanup_seconds` more before a group is deleted."""
        thread, self._thread = self._thread, None
        if thread is not None and thread is not current_thread():
            thread.join(max(0.0, self._deadline - monotonic()))

    def forget(self) -> None:
        """In a forked child the thread is not."""
        self._thread = None

    # On the thread

    def _run(self) -> None:
        orders, order = self._orders, None
        self._push(_Cumulative(self._registry))
        while order is None or not order.last:
            order = orders.get()
            if self._state() in FINAL_STATES and self._push(self._registry):
                self._note_end()
        if order.cleanup and self._cleanup_is_due(orders):
            self._attempt(self._delete, self._group)

    def _cleanup_is_due(self, orders: SimpleQueue[_Order]) -> bool:
        """Wait until the end of a completed run could be scraped; False if that will not be, or as
        soon as somebody has no time for it."""
        seconds, since = self._settings.cleanup_seconds, self._completed_at
        if seconds is None or since is None:
            return False
        with suppress(Empty):
            while orders.get(timeout=max(0.0, since + seconds - monotonic())).cleanup:
                pass
            return False
        return True

    def _note_end(self) -> None:
        """Since when the gateway shows that the run has completed, if it does."""
        completed = self._state() == COMPLETED
        self._completed_at = (self._completed_at or monotonic()) if completed else None

    def _push(self, page: CollectorRegistry | _Cumulative) -> bool:
        before, self._group = self._group, dict(self._labels())
        pushed = self._attempt(self._put, page)
        if before is not None and before != self._group:  # the run has got its name meanwhile
            self._attempt(self._delete, before)
        return pushed

    def _put(self, page: Any) -> None:
        gateway = self._settings.gateway
        push_to_gateway(gateway, JOB, page, self._group, timeout=REQUEST_SECONDS)

    def _delete(self, group: dict[str, str]) -> None:
        delete_from_gateway(self._settings.gateway, JOB, group, timeout=REQUEST_SECONDS)

    def _attempt(self, send: Callable[[Any], None], what: object) -> bool:
        """Whether it went well."""
        try:
            send(what)
        except Exception as error:  # nobody is above in this thread, and users' code is in it
            self._on_failure()
            if not self._warned:
                self._warned = True
                logger.warning(
                    "the Pushgateway at %s was not told of the run: %s; more failures are only "
                    "counted, in training_exporter_errors_total, and the training is not affected",
                    self._settings.gateway,
                    _reason(error),
                    exc_info=None if isinstance(error, _GATEWAY_IN_TROUBLE) else error,
                )
            return False
        return True


class _Cumulative:
    """What of a registry only ever grows."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Family]:
        return (family for family in self._registry.collect() if family.type in _CUMULATIVE)


def _reason(error: Exception) -> str:
    """With what the gateway itself says of it, as far as that comes."""
    reason = str(error) or type(error).__name__
    if isinstance(error, HTTPError):
        with suppress(*_GATEWAY_IN_TROUBLE):
            said = error.read(MAX_REASON).decode(errors="replace")
            reason = f"{reason}: {' '.join(said.split())}"
    return reason


_all: WeakSet[Pusher] = WeakSet()


def _forget_all() -> None:
    for pusher in list(_all):
        pusher.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
