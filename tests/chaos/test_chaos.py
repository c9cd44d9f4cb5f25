# SPDX-License-Identifier: Apache-2.0
"""Thirty runs that end at random moments: the state, the alert, the counters, and what is left.

CHAOS_SEED=... repeats the moments of an earlier time, which was printed.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from functools import cache

import pytest

from tests.chaos.chaos import (
    ALERT_SECONDS,
    EXIT_SECONDS,
    RUNS,
    STALL_SECONDS,
    STALLED,
    Chaos,
    Outcome,
    Run,
    table,
)

pytestmark = pytest.mark.e2e

PLANTED = {"TrainingLossNaN"}
"""Critical, and about the losses of these runs, not about their ends."""


@pytest.fixture(scope="module")
def happen(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Callable[[], Outcome]:
    """Everything at once, the first time somebody asks."""
    attempts: list[str] = []

    @cache
    def once() -> Outcome:
        assert not attempts, f"it did not come to its end with CHAOS_SEED={attempts[0]}"
        seed = os.environ.get("CHAOS_SEED") or secrets.token_hex(4)
        attempts.append(seed)
        print(f"CHAOS_SEED={seed}")
        outcome = Chaos(tmp_path_factory.mktemp("chaos"), seed).happen()
        capture = pytestconfig.pluginmanager.getplugin("capturemanager")
        with capture.global_and_fixture_disabled():
            print(f"\n{table(outcome)}")
        return outcome

    return once


@pytest.fixture
def outcome(binary: Callable[[str], str], happen: Callable[[], Outcome]) -> Outcome:
    """What has happened."""
    for name in ("prometheus", "prometheus-alertmanager"):
        binary(name)
    outcome = happen()
    print(table(outcome))  # shown with what fails, also by a worker, whose own output nobody sees
    return outcome


@pytest.fixture
def run(outcome: Outcome, request: pytest.FixtureRequest) -> Run:
    """One of the runs."""
    return outcome.runs[request.param]


each = pytest.mark.parametrize("run", RUNS, indirect=True)
each_loop = pytest.mark.parametrize(
    "run", [name for name in RUNS if not name.startswith("demo")], indirect=True
)


def is_over(run: Run) -> bool:
    """Whether it had the time to say how it ended."""
    return run.ending.state != "running"


@each
def test_it_ends_in_the_right_state_and_the_right_alert(run: Run) -> None:
    """As Prometheus saw it; in no other critical alert; and within a minute."""
    expected = {run.ending.alert} if run.ending.alert else set()
    bound = ALERT_SECONDS + (STALL_SECONDS if run.ending.alert == STALLED else 0)

    assert run.state == run.ending.state
    assert run.fired - PLANTED == expected
    assert expected <= set(run.alerts)
    assert run.alert_seconds is None or run.alert_seconds < bound
    assert ("TrainingCompleted" in run.alerts) == (run.state == "completed")


@each
def test_its_process_ends_as_it_would_without_us(run: Run) -> None:
    """With the same exit code, and held up by no more than the bound; a hang is nobody's to end."""
    if run.ending.code is None:
        assert run.ended is None
        return
    assert run.process.returncode == run.ending.code
    assert run.exit_seconds is not None
    assert run.exit_seconds < (EXIT_SECONDS if is_over(run) else 0) + 5


@each_loop
def test_no_counter_is_lost(run: Run) -> None:
    """What was scraped was counted; and where there was time for a last scrape, that is all."""
    lines = [line.split() for line in run.steps]
    # The last line is from before its step was reported, and that may not have come any more.
    least, most = len(lines) - 1, len(lines)
    non_finite = sum(int(flag) for _, flag in lines)
    scraped = run.scraped

    assert 0 < scraped["steps"] <= most
    assert scraped["tokens"] == 64 * scraped["steps"]
    assert scraped["NaN"] <= non_finite
    if is_over(run) or run.ending.alert == STALLED:
        assert least <= scraped["steps"]
        assert scraped["NaN"] == non_finite


@each_loop
def test_the_black_box_has_all_that_was_scraped_and_all_that_was_counted(run: Run) -> None:
    """Also of a process that was killed."""
    assert run.box is not None
    totals, lines = run.box.counters.totals, len(run.steps)

    assert lines - 1 <= totals.steps <= lines
    assert totals.steps >= run.scraped["steps"]
    assert totals.tokens >= run.scraped["tokens"]
    assert totals.non_finite_losses >= run.scraped["NaN"]
    assert run.box.counters.anomalies["non_finite"] >= run.scraped["anomalies"]


@each_loop
def test_the_black_box_has_the_state(run: Run) -> None:
    """The final one where there is one."""
    assert run.box is not None
    assert run.box.state == run.ending.state


@pytest.mark.parametrize(
    "run", [name for name in RUNS if name.startswith("completed")], indirect=True
)
def test_no_thread_is_left_after_close(run: Run) -> None:
    """While the process goes on."""
    assert run.diary[-1] == "left nothing"


def test_no_target_file_is_left_after_a_clean_end(outcome: Outcome) -> None:
    """And the next run removes those of processes that were killed."""
    assert outcome.left == []
    assert outcome.swept == []


def test_no_port_is_left(outcome: Outcome) -> None:
    """Nobody listens where the runs did."""
    assert outcome.ports == []
