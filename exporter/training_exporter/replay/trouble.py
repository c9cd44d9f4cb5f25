# SPDX-License-Identifier: Apache-2.0
"""What can be wrong with a log, told in a few lines however often it happens."""

from __future__ import annotations


class ReplayError(Exception):
    """Nothing can be replayed; the message says what was expected."""


class Troubles:
    """What was wrong with a log: each kind of trouble once, with how often and where first."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, str]] = {}

    def note(self, what: str, where: str = "") -> None:
        """Take in a trouble, such as "lines that are no JSON" with "line 5"."""
        count, first = self._seen.get(what, (0, where))
        self._seen[what] = (count + 1, first)

    def lines(self) -> list[str]:
        """A line for each kind of trouble, in the order in which they came up."""
        return [
            f"{count:,} {what}" + (f", the first at {first}" if first else "")
            for what, (count, first) in self._seen.items()
        ]
