# SPDX-License-Identifier: Apache-2.0
"""Programs that run beside each other and end together."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from urllib.error import URLError
from urllib.request import urlopen

POLL_SECONDS = 0.1
PATIENCE_SECONDS = 4.0
"""From asking a program to end to insisting on it."""


class ChildDiedError(Exception):
    """A program ended that was to go on; the message is for the user."""


class Child:
    """A program in a session of its own, so that Ctrl-C reaches it through us only and all that it
    starts ends with it.

    Args:
        name: what to call it.
        command: the program and its arguments.
        log: where its output goes; None leaves it on the terminal.
        environment: its environment, None is ours.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        log: Path | None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.log = log
        output = None if log is None else os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            self.process = subprocess.Popen(  # noqa: S603 - the commands are our own
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT if log else None,
                env=environment,
                start_new_session=True,
            )
        finally:
            if output is not None:
                os.close(output)

    @property
    def code(self) -> int | None:
        """Its exit code, None while it runs."""
        return self.process.poll()

    def last_lines(self, number: int = 8) -> str:
        """What it said last, indented; nothing when that went to the terminal."""
        if self.log is None:
            return ""
        lines = self.log.read_text(errors="replace").splitlines()[-number:]
        return "".join(f"\n    {line}" for line in lines)

    def died(self) -> ChildDiedError:
        return ChildDiedError(f"{self.name} ended with exit code {self.code}.{self.last_lines()}")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the program and all that it started, as far as they still run."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def wait(self, seconds: float) -> None:
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=seconds)


class Children:
    """Programs that were started here. On leaving the block none of them runs any more."""

    def __init__(self) -> None:
        self._children: list[Child] = []

    def start(
        self,
        name: str,
        command: Sequence[str | Path],
        log: Path | None,
        environment: Mapping[str, str] | None = None,
    ) -> Child:
        child = Child(name, command, log, environment)
        self._children.append(child)
        return child

    def __enter__(self) -> Children:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Asked twice, because a demo that is asked once waits for the scrape that sees its end.
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
            running = [child for child in self._children if child.code is None]
            for child in running:
                child.signal(number)
            deadline = time.monotonic() + PATIENCE_SECONDS / 2
            for child in running:
                child.wait(max(0.0, deadline - time.monotonic()))
        for child in self._children:
            child.signal(signal.SIGKILL)  # what it started and left behind


def wait_until_ready(
    child: Child, url: str, *, given_up: Callable[[], bool], seconds: float = 30
) -> None:
    """Wait until a program answers at an address, or until its user no longer wants it.

    Raises:
        ChildDiedError: it ended, or it did not answer in time.
    """
    deadline = time.monotonic() + seconds
    while not (given_up() or answers(url)):
        if child.code is not None:
            raise child.died()
        if time.monotonic() > deadline:
            raise ChildDiedError(f"{child.name} did not answer at {url}.{child.last_lines()}")
        time.sleep(POLL_SECONDS)


def answers(url: str) -> bool:
    """Whether there is a page at an address."""
    try:
        with urlopen(url, timeout=2):  # noqa: S310 - an address of our own
            return True
    except (URLError, OSError):
        return False


def free_port(preferred: int = 0) -> int:
    """A port of 127.0.0.1 that nobody listens on: the preferred one, or else any."""
    for port in (preferred, 0):
        with socket.socket() as candidate, suppress(OSError):
            candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            candidate.bind(("127.0.0.1", port))
            return int(candidate.getsockname()[1])
    raise OSError("no port is free on 127.0.0.1")
