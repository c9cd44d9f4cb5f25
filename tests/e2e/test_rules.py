# SPDX-License-Identifier: Apache-2.0
"""promtool reads the rules and runs their tests, that of this machine and a newer one."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.alert_rules import FOLDER, TEST_FILES

pytestmark = pytest.mark.e2e

RULES = sorted((FOLDER / "rules").glob("*.yml"))


@pytest.fixture(params=["installed", "newer"])
def promtool(request: pytest.FixtureRequest, binary: Callable[[str], str]) -> str:
    """Windows are closed in Prometheus 2 and left-open in 3, among other things."""
    if request.param == "installed":
        return binary("promtool")
    path = os.environ.get("NEWER_PROMTOOL")
    if path is None:
        message = "NEWER_PROMTOOL names no promtool; get one with: scripts/get-binaries.sh"
        if os.environ.get("REQUIRE_BINARIES") == "1":
            pytest.fail(message)
        pytest.skip(message)
    return path


def run(*command: str | Path) -> str:
    """Output of a command that has to succeed."""
    # Short-lived and small processes, which would spend a fifth of their time collecting garbage.
    environment = {**os.environ, "GOGC": "400"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_rules_are_valid(promtool: str) -> None:
    """Syntax, templates, and promtool's own lint, which fails only when told to."""
    output = run(promtool, "check", "rules", "--lint=all", "--lint-fatal", *RULES)

    assert output.count("SUCCESS") == len(RULES) == 2


@pytest.mark.parametrize("tests", TEST_FILES, ids=lambda path: path.name.split(".")[0])
def test_alerts_fire_when_they_should(promtool: str, tests: Path) -> None:
    """Each alert in a firing and a silent case, with its labels and its text."""
    run(promtool, "test", "rules", tests)
