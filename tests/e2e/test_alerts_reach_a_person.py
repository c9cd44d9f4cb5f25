# SPDX-License-Identifier: Apache-2.0
"""From a real fault in a real training to the message that a person reads, as it is shipped."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from scripts.monitoring import Programs, find_programs
from tests.e2e.chat_server import Message
from tests.e2e.watched_demos import SERVICES, Harvest, alert_of, harvest

pytestmark = pytest.mark.e2e

RUNS = {
    "nan": ("--steps", "260", "--fault", "nan@40", "--fault", "explosion@245"),
    "explosion": ("--steps", "260", "--fault", "explosion@245"),
    "stall": ("--steps", "300", "--fault", "stall@20"),
    "crash": ("--steps", "300", "--fault", "crash@30"),
    "healthy": ("--steps", "150", "--healthy"),
}
"""Each ends by itself, but for the one that stalls."""

EXPECTED = {
    "nan": {
        "TrainingStarted": "INFO",
        "TrainingLossNaN": "CRITICAL",
        "TrainingLearningRateAnomaly": "WARNING",
        "TrainingCompleted": "INFO",
    },
    "explosion": {
        "TrainingStarted": "INFO",
        "TrainingLossSpike": "WARNING",
        "TrainingGradientExplosion": "WARNING",
        "TrainingLearningRateAnomaly": "WARNING",
        "TrainingCompleted": "INFO",
    },
    "stall": {"TrainingStarted": "INFO", "TrainingStalled": "CRITICAL"},
    "crash": {"TrainingStarted": "INFO", "TrainingCrashed": "CRITICAL"},
    "healthy": {"TrainingStarted": "INFO", "TrainingCompleted": "INFO"},
}
"""Run -> its alerts, each with the word that its message begins with."""

TOLERATED = {
    "explosion": {
        "CRITICAL: TrainingDivergence",
        "RESOLVED: TrainingDivergence",
        "WARNING: TrainingThroughputDrop",
        "RESOLVED: TrainingThroughputDrop",
    },
    "stall": {"RESOLVED: TrainingStalled"},
}
"""What else may be told. Losses of 180 for four steps are about where divergence begins: on which
side they are depends on the machine's arithmetic. Five trainings share the machine, and a step that
waits for the others is slower indeed. And on a slow machine the stall may be over."""

RESOLVED = "RESOLVED"
NEWER = ("NEWER_PROMETHEUS", "NEWER_ALERTMANAGER")
HOW_TO_GET_NEWER = f"{' and '.join(NEWER)} name no programs; scripts/get-binaries.sh fetches some"


def newer_programs() -> Programs | None:
    """Those that the environment names, if it does."""
    paths = [os.environ.get(name) for name in NEWER]
    return Programs(*map(Path, filter(None, paths))) if all(paths) else None


@pytest.fixture(scope="module")
def harvests(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], dict[str, Harvest]]:
    """Everything at once, the first time somebody asks."""

    @cache
    def gather() -> dict[str, Harvest]:
        versions = {"installed": find_programs(), "newer": newer_programs()}
        here = {name: programs for name, programs in versions.items() if programs}
        folder = tmp_path_factory.mktemp("watched")
        return harvest(
            folder, here, RUNS, {run: frozenset(names) for run, names in EXPECTED.items()}
        )

    return gather


@pytest.fixture(params=["installed", "newer"])
def watched(
    request: pytest.FixtureRequest,
    binary: Callable[[str], str],
    harvests: Callable[[], dict[str, Harvest]],
) -> Harvest:
    """What Prometheus and Alertmanager in one version made of the runs."""
    for name in ("prometheus", "prometheus-alertmanager"):
        binary(name)
    if request.param == "newer" and newer_programs() is None:
        if os.environ.get("REQUIRE_BINARIES") == "1":
            pytest.fail(HOW_TO_GET_NEWER)
        pytest.skip(HOW_TO_GET_NEWER)
    return harvests()[request.param]


def only(watched: Harvest, run: str, alert: str) -> list[Message]:
    """The messages about an alert of a run, one for each service."""
    found = [
        message
        for service in SERVICES
        for message in watched.about(run, service)
        if alert_of(message) == alert and RESOLVED not in message.title
    ]
    assert [message.service for message in found] == list(SERVICES)
    return found


@pytest.mark.parametrize("run", EXPECTED)
@pytest.mark.parametrize("service", SERVICES)
def test_each_alert_arrives_once_and_no_other(watched: Harvest, run: str, service: str) -> None:
    """With its severity, to both services; nothing is told to be over, nothing vanished."""
    tolerated = {f"{title} · {run}" for title in TOLERATED.get(run, ())}
    titles = Counter(message.title.split(" ", 1)[1] for message in watched.about(run, service))
    others = {title: number for title, number in titles.items() if title not in tolerated}

    assert others == {f"{word}: {alert} · {run}": 1 for alert, word in EXPECTED[run].items()}


def test_nobody_else_is_heard_of(watched: Harvest) -> None:
    """No message without a run, and none that Slack or Discord would not take."""
    heard = sum(len(watched.about(run, service)) for run in RUNS for service in SERVICES)

    assert len(watched.messages) == heard
    assert watched.refused == ()


def test_a_healthy_run_fires_nothing(watched: Harvest) -> None:
    """Not even for a moment: only that it began and that it is complete."""
    assert watched.fired["healthy"] == {"TrainingStarted", "TrainingCompleted"}


def test_the_nan_silences_the_spike(watched: Harvest) -> None:
    """The same explosion as in the other run fires here too, and is kept back."""
    silenced = {"TrainingLossSpike", "TrainingGradientExplosion"}

    assert silenced <= watched.fired["nan"]
    assert silenced <= watched.suppressed.get("nan", set())
    assert not watched.suppressed.get("explosion")


def test_a_stalled_run_is_only_stalled(watched: Harvest) -> None:
    """A step that hangs makes nothing else fire."""
    assert watched.fired["stall"] == {"TrainingStarted", "TrainingStalled"}


def test_a_crashed_run_is_not_missed_too(watched: Harvest) -> None:
    """Its process ended long before; nothing else fired."""
    assert watched.fired["crash"] == {"TrainingStarted", "TrainingCrashed"}


@pytest.mark.parametrize(
    ("run", "alert", "said"),
    [
        ("nan", "TrainingLossNaN", ["step 4[0-4]", "loss NaN"]),
        ("explosion", "TrainingGradientExplosion", ["step 24[5-9]"]),
        ("explosion", "TrainingLossSpike", ["step 24[5-9]"]),
        ("stall", "TrainingStalled", ["step 19"]),
        ("crash", "TrainingCrashed", ["step 29"]),
    ],
)
def test_what_a_person_reads(watched: Harvest, run: str, alert: str, said: list[str]) -> None:
    """The run, the right step, what was seen, the likely cause, what to do, and where to look."""
    for message in only(watched, run, alert):
        text = message.text.replace("\\", "")  # Discord's escapes
        assert all(re.search(f"{what}\\b", text, re.IGNORECASE) for what in said), text
        assert run in text
        assert "Likely cause:" in text
        assert "Do now:" in text
        assert f"/docs/runbooks.md#{alert.lower()}" in text
        assert f"run%3D%22{run}%22" in text  # the link that silences it; there is no Grafana here
