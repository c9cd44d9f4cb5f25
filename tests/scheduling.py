# SPDX-License-Identifier: Apache-2.0
"""Which tests run beside which, and in what order, where pytest-xdist has several workers.

Most tests that take long wait: for a scrape, for a rule, for a browser. So more of them run at a
time than there are cores. What is bounded is how many trainings compete for these.
"""

from __future__ import annotations

from xdist.scheduler import LoadScopeScheduling

TRAININGS = (
    ("tests/chaos/test_chaos.py", "tests/e2e/test_alerts_reach_a_person.py"),
    ("tests/e2e/test_compose.py", "tests/e2e/test_dashboard_queries.py"),
)
"""Files that train several models at once, for minutes. Each line is one worker's, one after the
other; and they begin first, so that nobody waits for them at the end."""

WAITING = "tests/e2e/"
"""What mostly waits begins before what computes, which has time beside it."""

SINGLY = "tests/e2e/test_rules.py"
"""Its tests share nothing and compute for seconds each: they go last, each to whoever is free."""


def scope_of(nodeid: str) -> str:
    """What all tests of one worker's turn have in common: their file, since what a fixture of a
    module starts is to be started once, or the line of files above."""
    file = nodeid.split("::")[0]
    if file == SINGLY:
        return nodeid
    return next((files[0] for files in TRAININGS if file in files), file)


def turn_of(nodeid: str) -> int:
    """What a test's place in the order is made of; within one turn it is as collected."""
    file = nodeid.split("::")[0]
    if file == SINGLY:
        return 3
    if any(file in files for files in TRAININGS):
        return 0
    return 1 if file.startswith(WAITING) else 2


class Scheduler(LoadScopeScheduling):
    """Gives workers what belongs together, in the order of the tests."""

    def _split_scope(self, nodeid: str) -> str:
        return scope_of(nodeid)
