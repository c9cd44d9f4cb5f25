# SPDX-License-Identifier: Apache-2.0
"""How every command says what is wrong, and with which exit code it ends then."""

from __future__ import annotations

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
