# SPDX-License-Identifier: Apache-2.0
"""A process, told apart from a later one that got its number."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from training_exporter.lifecycle.ranks import whole_number

_PROC = Path("/proc")
_STATE, _START = 0, 19
"""Fields of /proc/PID/stat after the name, which may hold blanks and brackets: proc(5)."""
_ENDED = "ZX"


class Process(NamedTuple):
    """A process, as others can recognise it.

    Attributes:
        machine: the start of the system and the processes' name space in which the number means
            something; empty where that is unknown, as without /proc.
        number: its number.
        started: when it started, in the system's ticks; empty where that is unknown.
    """

    machine: str
    number: int
    started: str

    def __str__(self) -> str:
        return f"{self.machine} {self.number} {self.started}"

    @staticmethod
    def from_text(text: str) -> Process:
        """The process that `str` has made a text of.

        Raises:
            ValueError: it is none.
        """
        machine, number_text, started = text.split(" ")
        number = whole_number(number_text)
        if number is None:
            raise ValueError(f"no number of a process: {number_text!r}")
        return Process(machine, number, started)

    def is_of_machine_of(self, other: Process) -> bool:
        """Whether both are known to be of one machine, since its last start, and of one container.

        A host name does not tell: containers share it, and so do machines that never got one.
        """
        return self.machine == other.machine != ""

    def is_alive(self) -> bool:
        """Whether the process, which is of this machine, is still there. In doubt it is."""
        try:
            os.kill(self.number, 0)
        except ProcessLookupError:
            return False
        except OSError:
            pass  # somebody else's
        return _started(self.number) in (self.started, None)


def this_process() -> Process:
    """The process that calls."""
    number = os.getpid()
    return Process(_machine(), number, _started(number) or "")


def _machine() -> str:
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}:{(_PROC / 'self/ns/pid').stat().st_ino}"
    except OSError:
        return ""


def _started(number: int) -> str | None:
    """When a process started, empty when it has ended; None when nobody says."""
    try:
        fields = (_PROC / str(number) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return "" if fields[_STATE] in _ENDED else fields[_START]
