# SPDX-License-Identifier: Apache-2.0
"""What tests of several folders share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest

from tests.scheduling import Scheduler, turn_of

if TYPE_CHECKING:
    from xdist.remote import Producer

ROOT = Path(__file__).parent.parent

if "PYTEST_XDIST_WORKER" in os.environ:
    # Threads of OpenMP wait for each other by spinning: where others compute, too, a training of
    # two takes many times as long. Before torch is imported, and for the programs of the tests.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

HOW_TO_GET = {
    "promtool": "apt-get install prometheus",
    "prometheus": "apt-get install prometheus",
    "amtool": "apt-get install prometheus-alertmanager",
    "prometheus-alertmanager": "apt-get install prometheus-alertmanager",
    "prometheus-pushgateway": "apt-get install prometheus-pushgateway",
    "chromium": "apt-get install chromium",
    "cc": "apt-get install gcc libc6-dev",
    "busybox": "apt-get install busybox-static",
    "docker": "apt-get install docker.io",
    "dockerd": "apt-get install docker.io",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest begins first."""
    items.sort(key=lambda item: turn_of(item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduler:
    """Who runs what, where there are several workers."""
    config.option.loadscopereorder = False  # by number of tests, which says nothing about time
    return Scheduler(config, log)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """No setting of the machine reaches a test, and of all exporters in this process only those of
    tests about GPUs read any: a thread that outlives its test would ask the next one's driver."""
    launchers = {"RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE"}
    for variable in list(os.environ):
        # ACCELERATE_: what a Trainer with torch_compile leaves there would compile all later ones.
        known = variable.startswith(("TRAINING_EXPORTER_", "SLURM_", "OMPI_", "ACCELERATE_"))
        if known or variable in launchers:
            monkeypatch.delenv(variable)
    if request.node.get_closest_marker("e2e") is None:
        monkeypatch.setenv("TRAINING_EXPORTER_GPU_METRICS", "0")


@pytest.fixture(scope="session")
def binary() -> Callable[[str], str]:
    """Finds a program, or skips the test and says how to get it.

    With REQUIRE_BINARIES=1, as CI has it, a missing program is a failure.
    """

    def find(name: str) -> str:
        return shutil.which(name) or lacking(
            f"{name} is not installed; get it with: {HOW_TO_GET[name]}"
        )

    return find


@pytest.fixture
def newer_binary() -> Callable[[str], str]:
    """Finds the program that a variable like NEWER_PROMTOOL names, or skips the test likewise."""

    def find(variable: str) -> str:
        return os.environ.get(variable) or lacking(
            f"{variable} names no program; scripts/get-binaries.sh fetches one"
        )

    return find


def lacking(message: str) -> NoReturn:
    """Skip the test, or fail it where nothing may be missing."""
    if os.environ.get("REQUIRE_BINARIES") == "1":
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture
def logs(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """The exporter's log."""
    with caplog.at_level("INFO", logger="training_exporter"):
        yield caplog
