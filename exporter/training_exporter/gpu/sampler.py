# SPDX-License-Identifier: Apache-2.0
"""The thread that asks the driver of the GPUs, and nobody else does."""

from __future__ import annotations

import os
from collections.abc import Callable
from threading import Thread, current_thread
from weakref import WeakSet, finalize

from training_exporter.gpu.readings import GpuReadings
from training_exporter.gpu.watch import GpuWatch

CLOSE_SECONDS = 0.5
"""`close` waits so long for a sample in progress, and not at all for a driver that hangs."""


class GpuSampler:
    """Samples in a daemon thread, from `start` until `close`, or until nobody holds this object.

    The thread holds the watch and not this object, so that an exporter that is dropped takes its
    sampler along. A driver that hangs delays neither `close` nor the end of the process. A forked
    child has no such thread: there the sampler is as if it were closed.

    Args:
        new_watch: makes what runs in the thread.
    """

    def __init__(self, new_watch: Callable[[], GpuWatch]) -> None:
        self._new_watch = new_watch
        self._current = _Current()
        # At exit the process ends, and the thread with it.
        finalize(self, self._current.let_go).atexit = False

    @property
    def source(self) -> Callable[[], GpuReadings]:
        """Returns what is known at the moment of the call; does not hold the sampler."""
        return self._current.readings

    def start(self) -> None:
        """Begin to sample, if that is not done yet.

        Raises:
            RuntimeError: the system grants no more threads.
        """
        if self._current.watch is not None:
            return
        watch = self._new_watch()
        thread = Thread(target=watch.run, name="training-exporter-gpu", daemon=True)
        thread.start()
        self._current.watch, self._current.thread = watch, thread

    def close(self) -> None:
        """Stop sampling; nothing is shown from then on. May be called twice, `start` may follow."""
        self._current.end()


class _Current:
    """The watch that runs, if one does."""

    __slots__ = ("__weakref__", "thread", "watch")

    def __init__(self) -> None:
        self.watch: GpuWatch | None = None
        self.thread: Thread | None = None
        _all.add(self)

    def readings(self) -> GpuReadings:
        watch = self.watch
        return GpuReadings() if watch is None else watch.readings()

    def end(self) -> None:
        """Let go, and give the thread a moment to end where it can."""
        watch, thread = self.watch, self.thread
        self.let_go()
        if watch is None or thread is None:
            return
        if not watch.hanging and thread is not current_thread():
            thread.join(CLOSE_SECONDS)

    def let_go(self) -> None:
        """Tell the thread to end. Neither locks nor waits: the garbage collector may call this, in
        whatever thread it runs and whatever that holds."""
        watch = self.watch
        self.forget()
        if watch is not None:
            watch.stop()

    def forget(self) -> None:
        """Touches no lock: in a forked child nobody would release it."""
        self.watch = self.thread = None


_all: WeakSet[_Current] = WeakSet()


def _forget_all() -> None:
    for current in list(_all):
        current.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
