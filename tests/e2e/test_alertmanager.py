# SPDX-License-Identifier: Apache-2.0
"""Alertmanager itself with our routes: who is told what, when, and how often.

Seconds stand for minutes (alertmanager_process.SCALED). With NEWER_ALERTMANAGER=/path/to/it,
everything runs on that one too.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from scripts.alertmanager_config import as_text, derive, load
from tests.e2e.alertmanager_process import (
    CONFIG,
    INTERVAL,
    LIFETIME,
    TEMPLATES,
    Alertmanager,
    alert,
    newer_alertmanager,
    running,
    started,
)

pytestmark = pytest.mark.e2e

STATE = {"lifecycle": "state"}
CRITICAL = {"severity": "critical"}
INFO = {"severity": "info"}
SETTLED = 4 * INTERVAL
"""After this long nothing more comes."""


@pytest.fixture(params=["installed", "newer"])
def program(request: pytest.FixtureRequest, binary: Callable[[str], str]) -> str:
    """Debian's Alertmanager, and the one that NEWER_ALERTMANAGER names."""
    if request.param == "installed":
        return binary("prometheus-alertmanager")
    return newer_alertmanager()


@pytest.fixture
def alertmanager(program: str, tmp_path: Path) -> Iterator[Alertmanager]:
    """One that runs and tells a local chat server; nothing that it said was refused."""
    with running(program, tmp_path) as one:
        yield one
    assert [reason for reason in one.chat.refused if not reason.startswith("429")] == []


def test_the_cooldown(alertmanager: Alertmanager) -> None:
    """One event is one message, one that goes on is one per cooldown, and one that comes again
    after it is told at once, though its end was not told."""
    start = time.time()
    for second in range(6):
        time.sleep(max(0.0, start + second - time.time()))
        alertmanager.post(alert("TrainingLossSpike", "on-and-on"), ends_in=LIFETIME)
        if second == 0:
            alertmanager.post(alert("TrainingLossSpike", "once"), ends_in=LIFETIME)
        if second in {0, 4}:
            alertmanager.post(alert("TrainingLossSpike", "again"), ends_in=LIFETIME)
    alertmanager.wait_for("on-and-on", 3)
    time.sleep(max(0.0, start + 7 - time.time()))

    spike = "🟠 WARNING: TrainingLossSpike"
    for service in ("slack", "discord"):
        assert alertmanager.titles("once", service) == [f"{spike} · once"]
        assert alertmanager.titles("again", service) == [f"{spike} · again"] * 2
        assert alertmanager.titles("on-and-on", service) == [f"{spike} · on-and-on"] * 3
    second_time = [m.arrived - start for m in alertmanager.chat.messages if "again" in m.title][-1]
    assert 4 < second_time < 4 + 2 * INTERVAL


def test_the_end_of_a_state_is_told_and_that_of_an_event_is_not(alertmanager: Alertmanager) -> None:
    """Also for a critical state, and never for what only informs."""
    alertmanager.post(
        alert("TrainingLossPlateau", "a", **STATE),
        alert("TrainingDivergence", "b", **STATE, **CRITICAL),
        alert("TrainingCrashed", "c", **CRITICAL),
        alert("TrainingStarted", "d", **INFO),
        ends_in=1,
    )
    alertmanager.wait_for("a", 2)
    alertmanager.wait_for("b", 2)
    time.sleep(SETTLED)

    assert alertmanager.titles("a") == [
        "🟠 WARNING: TrainingLossPlateau · a",
        "🟢 RESOLVED: TrainingLossPlateau · a",
    ]
    assert alertmanager.titles("b") == [
        "🔴 CRITICAL: TrainingDivergence · b",
        "🟢 RESOLVED: TrainingDivergence · b",
    ]
    assert alertmanager.titles("c") == ["🔴 CRITICAL: TrainingCrashed · c"]
    assert alertmanager.titles("d") == ["🔵 INFO: TrainingStarted · d"]


def test_what_explains_another_alert_silences_it(alertmanager: Alertmanager) -> None:
    """NaN the spike that came a moment before it, a crash the standstill; not those of other
    runs."""
    alertmanager.post(
        alert("TrainingLossSpike", "nan"),
        alert("TrainingGradientExplosion", "nan"),
        alert("TrainingLossSpike", "other"),
        ends_in=30,
    )
    alertmanager.post(
        alert("TrainingLossNaN", "nan", **CRITICAL),
        alert("TrainingCrashed", "dead", **CRITICAL),
        ends_in=30,
    )
    alertmanager.wait_for("dead", 1)
    alertmanager.post(
        alert("TrainingStalled", "dead", **STATE, **CRITICAL),
        alert("TrainingScrapesMissing", "dead", **STATE, component="exporter"),
        ends_in=30,
    )
    alertmanager.wait_for("other", 1)
    time.sleep(SETTLED)

    assert alertmanager.titles("nan") == ["🔴 CRITICAL: TrainingLossNaN · nan"]
    assert alertmanager.titles("dead") == ["🔴 CRITICAL: TrainingCrashed · dead"]
    assert alertmanager.titles("other") == ["🟠 WARNING: TrainingLossSpike · other"]


def test_a_run_that_completes_takes_its_warnings_along_in_silence(
    alertmanager: Alertmanager,
) -> None:
    """The end of a critical alert is told: somebody was called. So is the end of a run's warnings
    that did not complete."""
    for run in ("done", "stopped"):
        alertmanager.post(
            alert("TrainingLossPlateau", run, **STATE),
            alert("TrainingStalled", run, **STATE, **CRITICAL),
            ends_in=2,
        )
    alertmanager.wait_for("done", 2)
    alertmanager.wait_for("stopped", 2)
    alertmanager.post(
        alert("TrainingCompleted", "done", **INFO),
        alert("TrainingStopped", "stopped", **INFO),
        ends_in=10,
    )
    alertmanager.wait_for("stopped", 5)
    time.sleep(SETTLED)

    assert sorted(alertmanager.titles("done")[2:]) == [
        "🔵 INFO: TrainingCompleted · done",
        "🟢 RESOLVED: TrainingStalled · done",
    ]
    assert sorted(alertmanager.titles("stopped")[2:]) == [
        "🔵 INFO: TrainingStopped · stopped",
        "🟢 RESOLVED: TrainingLossPlateau · stopped",
        "🟢 RESOLVED: TrainingStalled · stopped",
    ]


def test_what_ends_together_with_what_silenced_it_is_told_and_may_come_again(
    alertmanager: Alertmanager,
) -> None:
    """As when a run that stalled and vanished is back. The second standstill is told at once,
    though the last message about the first is younger than the repeat."""
    stalled = alert("TrainingStalled", "back", **STATE, **CRITICAL)
    alertmanager.post(stalled, ends_in=1)
    alertmanager.post(alert("TrainingVanished", "back", **CRITICAL), ends_in=1)
    alertmanager.wait_for("back", 2)
    time.sleep(1 + SETTLED)
    alertmanager.post(stalled, ends_in=30)

    assert sorted(alertmanager.wait_for("back", 4)) == [
        "🔴 CRITICAL: TrainingStalled · back",
        "🔴 CRITICAL: TrainingStalled · back",
        "🔴 CRITICAL: TrainingVanished · back",
        "🟢 RESOLVED: TrainingStalled · back",
    ]


def test_many_alerts_of_a_run_are_one_message_and_two_runs_are_two(
    alertmanager: Alertmanager,
) -> None:
    """Our rules aggregate the ranks; if somebody's own rule keeps them, five are described."""
    ranks = [alert("TrainingLossSpike", "node", rank=str(rank)) for rank in range(64)]
    alertmanager.post(*ranks, ends_in=30)
    alertmanager.post(alert("TrainingLossSpike", "second"), ends_in=30)
    alertmanager.wait_for("second", 1)
    alertmanager.wait_for("node", 1)
    time.sleep(SETTLED)

    assert len(alertmanager.titles("node")) == len(alertmanager.titles("second")) == 1
    texts = [m.text for m in alertmanager.chat.messages if m.title.endswith("node")]
    assert [text.count("rank 3, step 1234") for text in texts] == [5, 5]
    assert [text.count("Likely cause") for text in texts] == [1, 1]
    assert all(text.endswith("These are the first 5 of 64.") for text in texts)


def test_a_message_that_was_refused_for_its_rate_comes_soon_after(
    alertmanager: Alertmanager,
) -> None:
    """At the next group_interval, and once."""
    chat = alertmanager.chat
    chat.rate_limited = True
    alertmanager.post(alert("TrainingLossNaN", "busy", **CRITICAL), ends_in=30)
    chat.wait(lambda _: len(chat.refused) >= 2, 5)
    chat.rate_limited = False
    chat.wait(lambda messages: len(messages) >= 2, 5 * INTERVAL)
    time.sleep(SETTLED)

    assert sorted(message.service for message in chat.messages) == ["discord", "slack"]


def test_alerts_of_others_are_told_to_nobody(alertmanager: Alertmanager) -> None:
    """They are on the page of Alertmanager, as ours are."""
    foreign = {"labels": {"alertname": "DiskFull", "severity": "critical"}, "annotations": {}}
    alertmanager.post(foreign, ends_in=30)
    alertmanager.post(alert("TrainingLossNaN", "mine", **CRITICAL), ends_in=30)
    alertmanager.wait_for("mine", 1)
    time.sleep(SETTLED)

    assert [m.title for m in alertmanager.chat.messages if "mine" not in m.title] == []
    assert names_on_the_page(alertmanager.url) == ["DiskFull", "TrainingLossNaN"]


def test_without_secrets_alerts_stay_on_the_page(program: str, tmp_path: Path) -> None:
    """It starts, and no notification fails."""
    config = derive(load(CONFIG), secrets=tmp_path / "none", templates=str(TEMPLATES))
    path = tmp_path / "alertmanager.yml"
    path.write_text(as_text(config))

    with started(program, path, tmp_path) as url:
        Alertmanager(url, chat=None, log=path).post(  # type: ignore[arg-type]
            alert("TrainingLossNaN", "x", **CRITICAL), ends_in=30
        )
        time.sleep(INTERVAL)
        assert names_on_the_page(url) == ["TrainingLossNaN"]
        with urlopen(f"{url}/metrics", timeout=5) as page:
            metrics = page.read().decode()
    sent = re.findall(r"^alertmanager_notifications_total\{.*\} (\S+)$", metrics, re.MULTILINE)
    assert set(sent) <= {"0"}
    assert "level=ERROR" not in (tmp_path / "alertmanager.log").read_text().replace(
        "error", "ERROR"
    )


def names_on_the_page(url: str) -> list[str]:
    """Of the alerts that Alertmanager shows."""
    with urlopen(f"{url}/api/v2/alerts", timeout=5) as answer:
        alerts: list[dict[str, Any]] = json.load(answer)
    return sorted(one["labels"]["alertname"] for one in alerts)
