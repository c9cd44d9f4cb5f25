# SPDX-License-Identifier: Apache-2.0
"""Target files, by which Prometheus finds the processes of a run, whatever their ports and nodes.

In a folder that they share with Prometheus each process keeps a file of its own, in the form that
Prometheus reads as `file_sd_configs`. It is there for as long as the process serves; that of a
process that was killed is removed by the next one that begins on the same machine.
"""

from __future__ import annotations

import json
import logging
import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from time import time
from typing import Final, NamedTuple

from training_exporter.files import write_whole
from training_exporter.lifecycle.processes import Process, this_process
from training_exporter.values import safe_file_name

logger = logging.getLogger("training_exporter")

ABANDONED_SECONDS: Final = 24 * 3600.0
"""What was not touched for so long is nobody's any more, also that of another machine."""
REFRESH_SECONDS: Final = 300.0
"""Between two touches of a file, so that it is seen to be somebody's; brings it back, too."""
STOP_SECONDS: Final = 2.0
"""How long the end of a run waits for its file to be removed: the folder may hang."""

META: Final = "__meta_training_exporter_"
"""Prometheus drops labels of such names once targets are relabelled. A label `run` or `rank` of a
target would rename those of the series to `exported_run` and `exported_rank`."""
_PROCESS: Final = f"{META}process"
_OWN_NAME: Final = re.compile(r"\.?.+-r\d+-.+-\d+-\d+\.json(\.tmp)?")


class Target(NamedTuple):
    """A process that serves a page.

    Attributes:
        run, rank: as on its series.
        host: name or address at which Prometheus reaches it.
        port: the port of the page.
    """

    run: str
    rank: int
    host: str
    port: int


def target_host(address: str, chosen: str | None) -> str:
    """The host of a target: the chosen one, else the address that is listened to, else, when that
    is all interfaces, the name of this machine."""
    host = chosen or address.strip("[]")
    with suppress(ValueError):
        parsed = ip_address(host)
        if parsed.is_unspecified:
            return socket.gethostname()
        return f"[{parsed}]" if parsed.version == 6 else str(parsed)
    return host or socket.gethostname()


class TargetFolder:
    """The files of one process in a folder of target files.

    Args:
        folder: the folder; made when it is not there.
        process: the process.
        machine: its name, part of the names of the files.
    """

    def __init__(self, folder: Path, process: Process, machine: str) -> None:
        self._folder = folder
        self._process = process
        self._machine = safe_file_name(machine)
        self._path: Path | None = None

    def write(self, target: Target) -> None:
        """Write the file, under its name only once it is whole, instead of the one before.

        Raises:
            OSError: no permission, disk full.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        run, process, port = safe_file_name(target.run), self._process.number, target.port
        stem = f"{run}-r{target.rank}-{self._machine}-{process}-{port}"
        path = self._folder / f"{stem}.json"
        unfinished = self._folder / f".{stem}.json.tmp"  # a name that Prometheus does not look for
        write_whole(path, _content(target, self._process).encode(), draft=unfinished)
        before, self._path = self._path, path
        if before is not None and before != path:
            before.unlink(missing_ok=True)

    def touch(self) -> bool:
        """Show that the file is somebody's; False when that fails, as when it is gone."""
        try:
            os.utime(self._path or "")
        except OSError:
            return False
        return True

    def remove(self) -> None:
        """Remove the file.

        Raises:
            OSError: no permission any more.
        """
        path, self._path = self._path, None
        if path is not None:
            path.unlink(missing_ok=True)

    def sweep(self, *, abandoned: bool) -> None:
        """Remove the files of processes of this machine that are dead, as far as that is allowed.

        Args:
            abandoned: also those that nobody has touched for a day, of any machine.
        """
        oldest = time() - ABANDONED_SECONDS
        with suppress(OSError):
            for path in self._others():
                with suppress(OSError):
                    of_this_machine = f"-{self._machine}-" in path.name
                    old = abandoned and path.stat().st_mtime < oldest
                    if (of_this_machine or old) and self._is_dead(path, old=old):
                        path.unlink(missing_ok=True)

    def _others(self) -> Iterator[Path]:
        with os.scandir(self._folder) as entries:
            names = [entry.name for entry in entries if _OWN_NAME.fullmatch(entry.name)]
        return (self._folder / name for name in names)

    def _is_dead(self, path: Path, *, old: bool) -> bool:
        """Whether a file is one of ours, and its process has ended or must have."""
        if path.suffix == ".tmp":  # killed while it wrote
            return old
        try:
            (group,) = json.loads(path.read_bytes())
            process = Process.from_text(group["labels"][_PROCESS])
        except (ValueError, TypeError, KeyError, AttributeError):
            return False
        if process.is_of_machine_of(self._process):
            return not process.is_alive()
        return old


def _content(target: Target, process: Process) -> str:
    labels = {
        f"{META}run": target.run,
        f"{META}rank": str(target.rank),
        _PROCESS: str(process),
    }
    return json.dumps([{"targets": [f"{target.host}:{target.port}"], "labels": labels}], indent=1)


class TargetKeeper:
    """Keeps the target file of this process, on a thread of its own: a shared folder may hang, and
    nobody in the training or at the page waits for it.

    Trouble is a warning the first time, and counted each time; the training goes on. A forked child
    does nothing here: the file is its parent's.

    Args:
        folder: where the file goes.
        on_error: called for each error, on the thread.
        refresh_seconds: from one touch of the file to the next.
    """

    def __init__(
        self,
        folder: Path,
        on_error: Callable[[], object],
        refresh_seconds: float = REFRESH_SECONDS,
    ) -> None:
        self._process = this_process()
        self._where = folder.expanduser().absolute()  # a script may go elsewhere
        self._folder = TargetFolder(self._where, self._process, socket.gethostname())
        self._on_error = on_error
        self._refresh_seconds = refresh_seconds
        self._orders: SimpleQueue[Target | None] = SimpleQueue()
        self._ordered: Target | None = None
        self._thread: Thread | None = None
        self._warned = False

    def publish(self, target: Target) -> None:
        """Have the file say so. It soon does.

        Raises:
            RuntimeError: the system grants no more threads.
        """
        if target == self._ordered or os.getpid() != self._process.number:
            return
        self._ordered = target
        self._orders.put(target)
        if self._thread is None:
            thread = Thread(target=self._keep, name="training-exporter-target", daemon=True)
            thread.start()
            self._thread = thread

    def remove(self) -> None:
        """Remove the file and end the thread. May be called twice."""
        if self._thread is None or os.getpid() != self._process.number:
            return
        self._orders.put(None)
        self._thread.join(STOP_SECONDS)

    def _keep(self) -> None:
        target, shown = self._orders.get(), None
        if target is not None:
            self._folder.sweep(abandoned=target.rank == 0)  # one for all is enough
        while target is not None:
            if target != shown or not self._folder.touch():
                self._attempt(partial(self._folder.write, target))
                shown = target
            with suppress(Empty):
                target = self._orders.get(timeout=self._refresh_seconds)
        self._attempt(self._folder.remove)

    def _attempt(self, action: Callable[[], None]) -> None:
        try:
            action()
        except (OSError, ValueError) as error:  # the latter for a name that no file can have
            self._on_error()
            if not self._warned:
                self._warned = True
                logger.warning(
                    "training goes on without a target file for Prometheus in %s: %s",
                    self._where,
                    error,
                )
