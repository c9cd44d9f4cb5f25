# SPDX-License-Identifier: Apache-2.0
"""How every command says what is wrong, with which exit code it ends then, and how it is ended."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer
from rich.console import Console
from rich.markup import escape

USAGE_ERROR = 2


def say_error(message: str) -> None:
    """Say on stderr what is wrong."""
    Console(stderr=True).print(f"[bold red]Error:[/] {escape(message)}", soft_wrap=True)


def fail(message: str) -> NoReturn:
    """Say on stderr what is wrong, and end the command.

    Raises:
        typer.Exit: always, with USAGE_ERROR.
    """
    say_error(message)
    raise typer.Exit(USAGE_ERROR)


class Terminated(KeyboardInterrupt):
    """SIGTERM: unlike a person with Ctrl-C, who sends it wants no page to be served any more."""


@contextmanager
def signals_interrupt() -> Iterator[None]:
    """While SIGINT is Ctrl-C, and SIGTERM is one that wants the process to end.

    Also where the process was started to ignore SIGINT, as shells do in the background, and as the
    first process of a container, which has no default for either.
    """
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: _terminate}
    before = {number: signal.getsignal(number) for number in handlers}
    for number, handler in handlers.items():
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def _terminate(*_: object) -> NoReturn:
    raise Terminated
