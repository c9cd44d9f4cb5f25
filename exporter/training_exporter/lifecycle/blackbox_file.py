# SPDX-License-Identifier: Apache-2.0
"""The file of a black box while a process writes into it.

It is mapped into memory: what was written there is the kernel's, and outlives a process that is
killed by SIGKILL. Nothing is forced to the disk, so it does not outlive the machine for sure. And
nothing lets go of the interpreter's lock, for which a busy thread could make a step wait for
milliseconds, as it could with a call that writes.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from training_exporter.lifecycle.blackbox_format import (
    FILE_SIZE,
    HEAD_SIZE,
    MAGIC,
    RING,
    STEP_SIZE,
    STEPS_AT,
    SUMS_AT,
    SUMS_SIZE,
    TEXT_SIZE,
    TEXTS_AT,
    step_slot,
    sums_slot,
    text_slot,
)
from training_exporter.signals import StepSignals


class BoxFile:
    """A new file, open for writing.

    Args:
        path: where; there must be nothing yet.
        head: what is in the head.

    Attributes:
        steps: how many steps were noted.

    Raises:
        OSError: no permission, disk full, no such folder. No file stays behind.
        ValueError: the head is too large.
    """

    def __init__(self, path: Path, head: Mapping[str, Any]) -> None:
        content = MAGIC + text_slot(1, head, HEAD_SIZE - len(MAGIC))
        self.steps = 0
        self._texts = self._sums = 0
        self._map = _mapped(path)
        self._map[: len(content)] = content

    def add_step(self, signals: StepSignals) -> None:
        """Put a step into the ring.

        Raises:
            struct.error: a field is not a number.
        """
        number = self.steps + 1
        slot = step_slot(number, signals)
        at = STEPS_AT + number % RING * STEP_SIZE
        self._map[at : at + STEP_SIZE] = slot
        self.steps = number

    def write_state(self, content: Mapping[str, Any]) -> None:
        """Replace the text.

        Raises:
            ValueError: it does not fit in; the one before stays.
        """
        slot = text_slot(self._texts + 1, content, TEXT_SIZE)
        self._texts += 1
        at = TEXTS_AT + self._texts % 2 * TEXT_SIZE
        self._map[at : at + len(slot)] = slot

    def write_sums(self, values: Sequence[float]) -> None:
        """Replace the sums."""
        self._sums += 1
        slot = sums_slot(self._sums, values)
        at = SUMS_AT + self._sums % 2 * SUMS_SIZE
        self._map[at : at + len(slot)] = slot

    def close(self) -> None:
        """Let go of the file, which stays. In a forked child that leaves the parent's alone."""
        self._map.close()


def _mapped(path: Path) -> mmap.mmap:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        # Real blocks: a disk that fills up later must not kill the process by SIGBUS.
        os.posix_fallocate(descriptor, 0, FILE_SIZE)
        with suppress(OSError):  # not every file system has locks; then nobody knows who lives
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return mmap.mmap(descriptor, FILE_SIZE)  # keeps a descriptor, and so the lock, of its own
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)
