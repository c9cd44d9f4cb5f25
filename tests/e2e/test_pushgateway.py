# SPDX-License-Identifier: Apache-2.0
"""Jobs that are over before anybody has scraped them, and a real Pushgateway that is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml

from scripts.monitoring import prometheus_config
from scripts.processes import Children, wait_until_ready
from tests.ports import free_port

pytestmark = pytest.mark.e2e

JOB = """
import os, sys, time
from training_exporter import StepSignals, TrainingExporter

with TrainingExporter() as exporter:
    while not os.path.exists("go"):  # the counters of the start are scraped meanwhile
        time.sleep(0.02)
    for step in range(1, 5):
        exporter.set_state("running")
        exporter.observe(StepSignals(step, time.time(), float("nan"), max_steps=4))
    {end}
"""
INTERVAL = "1s"


class World(NamedTuple):
    """A Pushgateway that a Prometheus scrapes, which has the shipped rules."""

    gateway: str
    prometheus: str
    folder: Path

    def start(self, run: str, end: str = "", **settings: str) -> subprocess.Popen[bytes]:
        own = {f"TRAINING_EXPORTER_{name}": value for name, value in settings.items()}
        environment = {
            **os.environ,
            "TRAINING_EXPORTER_RUN": run,
            "TRAINING_EXPORTER_SERVE": "0",
            "TRAINING_EXPORTER_PUSHGATEWAY": self.gateway,
            **own,
        }
        return subprocess.Popen(
            [sys.executable, "-c", JOB.format(end=end)],
            stderr=subprocess.DEVNULL,
            env=environment,
            cwd=self.folder,
        )

    def go(self) -> None:
        (self.folder / "go").touch()

    def has(self, query: str) -> bool:
        address = f"{self.prometheus}/api/v1/query?{urlencode({'query': query})}"
        with urlopen(address, timeout=10) as answer:
            return bool(json.load(answer)["data"]["result"])

    def until(self, query: str, *, holds: bool = True, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while self.has(query) != holds:
            assert time.monotonic() < deadline, f"did not come to pass: {query}"
            time.sleep(0.1)

    def page(self) -> str:
        with urlopen(f"{self.gateway}/metrics", timeout=10) as answer:
            return str(answer.read().decode())


def newer(name: str) -> str:
    path = os.environ.get(name)
    if path is None:
        message = f"{name} names no program; scripts/get-binaries.sh fetches some"
        if os.environ.get("REQUIRE_BINARIES") == "1":
            pytest.fail(message)
        pytest.skip(message)
    return path


@pytest.fixture(params=["installed", "newer"])
def world(
    request: pytest.FixtureRequest, tmp_path: Path, binary: Callable[[str], str]
) -> Iterator[World]:
    if request.param == "newer":
        pushgateway, prometheus = newer("NEWER_PUSHGATEWAY"), newer("NEWER_PROMETHEUS")
    else:
        pushgateway, prometheus = binary("prometheus-pushgateway"), binary("prometheus")
    ports = free_port(), free_port()
    config = yaml.safe_load(prometheus_config([f"127.0.0.1:{ports[0]}"], "127.0.0.1:9"))
    config["global"]["scrape_interval"] = INTERVAL
    config["scrape_configs"][0]["honor_labels"] = True
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    commands = {
        "pushgateway": [
            pushgateway,
            f"--web.listen-address=127.0.0.1:{ports[0]}",
            "--persistence.file=",  # Debian's keeps what it was told for the next one
        ],
        "prometheus": [
            prometheus,
            f"--config.file={tmp_path / 'prometheus.yml'}",
            f"--storage.tsdb.path={tmp_path / 'data'}",
            f"--web.listen-address=127.0.0.1:{ports[1]}",
        ],
    }
    with Children() as children:
        for (name, command), port in zip(commands.items(), ports, strict=True):
            child = children.start(name, command, tmp_path / f"{name}.log")
            ready = f"http://127.0.0.1:{port}/-/ready"
            wait_until_ready(child, ready, given_up=lambda: False)
        yield World(*[f"http://127.0.0.1:{port}" for port in ports], tmp_path)


def test_a_crash_that_nobody_could_scrape_is_alerted(world: World) -> None:
    """Its NaN by the counter, its end by the state; both stay, with the run's own labels."""
    with world.start("short", "1 / 0") as job:
        world.until('training_anomalies_total{kind="non_finite",run="short",rank="0"} == 0')
        assert not world.has('training_state{run="short"}')
        world.go()
        began = time.monotonic()
        assert job.wait(30) == 1
    took = time.monotonic() - began

    for alert in ("TrainingLossNaN", "TrainingCrashed"):
        world.until(f'ALERTS{{alertname="{alert}",alertstate="firing",run="short"}}')
    world.until('increase(training_anomalies_total{kind="non_finite",run="short"}[1m]) > 0')
    assert world.has('training_state{run="short",state="crashed",job="training"} == 1')
    assert took < 15


def test_a_completed_run_is_deleted_after_it_was_scraped(world: World) -> None:
    """So long the process stays; then nothing of it is in the gateway, and nothing vanished."""
    with world.start("done", LINGER="3") as job:
        world.until('training_steps_total{run="done"} == 0')
        world.go()
        world.until('training_state{run="done",state="completed"} == 1')
        assert job.poll() is None
        assert job.wait(20) == 0

    assert 'run="done"' not in world.page()
    world.until('training_state{run="done"}', holds=False)
    assert not world.has('ALERTS{alertname="TrainingVanished"}')


def test_what_is_kept_on_demand(world: World) -> None:
    """And then nobody is held up."""
    with world.start("kept", PUSHGATEWAY_CLEANUP="0") as job:
        world.until('training_steps_total{run="kept"} == 0')
        world.go()
        began = time.monotonic()
        assert job.wait(20) == 0

    assert time.monotonic() - began < 15
    assert 'training_state{instance="",job="training",rank="0",run="kept",state="completed"} 1' in (
        world.page()
    )


def test_a_killed_one_leaves_nothing_that_looks_alive(world: World) -> None:
    """Its counters are there, no state is; the next process of the run takes the place."""
    with world.start("killed") as job:
        world.until('training_steps_total{run="killed"} == 0')
        job.send_signal(signal.SIGKILL)

    assert "training_state{" not in world.page()
    world.go()
    with world.start("killed", PUSHGATEWAY_CLEANUP="0") as job:
        assert job.wait(20) == 0
    world.until('training_state{run="killed",state="completed"} == 1')
