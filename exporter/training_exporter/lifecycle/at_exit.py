# SPDX-License-Identifier: Apache-2.0
"""Doing something when the process ends, in whichever process that is."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable

_registered_in: int | None = None
_registered: Callable[[], None] | None = None


def do_at_exit(last_words: Callable[[], None]) -> None:
    """Have it done once when this process ends, however often that is asked for.

    It is for one thing in a process, the last words of all exporters.
    """
    global _registered, _registered_in
    process = os.getpid()
    if _registered_in == process:  # a forked child inherits it, and may have an exporter of its own
        return
    _registered_in = process

    said: list[bool] = []

    def at_exit() -> None:
        if os.getpid() == process and not said:  # multiprocessing calls it in the main process too
            said.append(True)
            last_words()

    _registered = at_exit
    atexit.register(at_exit)
    multiprocessing = sys.modules.get("multiprocessing.util")
    if multiprocessing is not None:  # whose forked children end without what atexit knows
        multiprocessing.Finalize(None, at_exit, exitpriority=0)


def come_first() -> None:
    """Have it done before what others have asked for since, as whoever came last comes first."""
    if _registered is not None:
        atexit.unregister(_registered)
        atexit.register(_registered)
