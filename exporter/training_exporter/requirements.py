# SPDX-License-Identifier: Apache-2.0
"""Packages that only some parts of this one need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needed_by(what: str, *packages: str, install: str) -> Iterator[None]:
    """Around imports: a package that is not there is said with who needs it and how to get it.

    Args:
        what: what needs them, as a user knows it.
        packages: their import names.
        install: what `pip install` takes.

    Raises:
        ModuleNotFoundError: instead of one that says just the name.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name not in packages:
            raise
        raise ModuleNotFoundError(
            f"{what} needs {name}, which is not installed: pip install {install}", name=name
        ) from None
