# SPDX-License-Identifier: Apache-2.0
"""What a rule of the lint is, and the table that all of them are in."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.dashboards.model import Json

Check = Callable[[Json], Iterator[str]]

RULES: dict[str, Check] = {}
"""Every rule by its name; each yields a line for each offence."""


def rule(name: str) -> Callable[[Check], Check]:
    """Enter a check under a name."""

    def enter(check: Check) -> Check:
        assert name not in RULES, name
        RULES[name] = check
        return check

    return enter
