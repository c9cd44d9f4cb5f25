# SPDX-License-Identifier: Apache-2.0
"""What can be wrong with a log, told in a few lines however often it happens."""

from __future__ import annotations

import re

_FORMS = re.compile(r"\((\w*)\|(\w*)\)")


class ReplayError(Exception):
    """Nothing can be replayed; the message says what was expected."""


class Troubles:
    """What was wrong with a log: each kind of trouble once, with how often and where first."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, str]] = {}

    def note(self, what: str, where: str = "") -> None:
        """Take in a trouble, such as "line(|s) that (is|are) no JSON" with "line 5": before the bar
        is what is said of one."""
        count, first = self._seen.get(what, (0, where))
        self._seen[what] = (count + 1, first)

    def lines(self) -> list[str]:
        """A line for each kind of trouble, in the order in which they came up."""
        return [
            f"{count:,} {_in_number(what, count)}" + _first_of(count, first)
            for what, (count, first) in self._seen.items()
        ]


def _in_number(what: str, count: int) -> str:
    return _FORMS.sub(lambda forms: forms[1] if count == 1 else forms[2], what)


def _first_of(count: int, where: str) -> str:
    if not where:
        return ""
    return f", at {where}" if count == 1 else f", the first at {where}"
