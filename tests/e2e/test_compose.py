# SPDX-License-Identifier: Apache-2.0
"""docker-compose.yml and exporter/Dockerfile, really executed by an engine of the test's own.

Images cannot be pulled where no registry is, so stand_in_images.py makes some of this machine's
programs. Of Grafana there is no program, so its service is the only one that does not run.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import mkdtemp
from time import monotonic, sleep
from typing import Any, NamedTuple
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml

from tests.conftest import ROOT
from tests.e2e.chat_server import ChatServer
from tests.e2e.private_docker import BRIDGE, Docker, checked, private_docker
from tests.e2e.stand_in_images import (
    RootFolder,
    alertmanager_image,
    prometheus_image,
    python_image,
)
from tests.ports import free_port
from training_exporter import TrainingExporter

pytestmark = pytest.mark.e2e

Binary = Callable[[str], str]

SERVICES = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
DOCKERFILE = (ROOT / "exporter" / "Dockerfile").read_text()
PYTHON_IMAGE = re.findall(r"^ARG PYTHON_IMAGE=(\S+)$", DOCKERFILE, re.MULTILINE)[0]
PORTS = ("TRAINER_PORT", "PROMETHEUS_PORT", "ALERTMANAGER_PORT", "GRAFANA_PORT")
OWN_RUN: dict[str, Any] = {
    "run": "own",
    "sd_dir": str(ROOT / "prometheus" / "targets"),
    "sd_address": "host.docker.internal",
    "linger": 0,
}
"""A run of one's own on this machine, as docs/compose.md has it."""
FAULT = "--steps 100000 --eval-every 0 --fault nan@60"


class Stack(NamedTuple):
    """The project of the compose file at an engine, at free ports."""

    docker: Docker
    compose: str
    ports: Mapping[str, int]

    def __call__(self, *arguments: str, **environment: str) -> str:
        """What docker-compose says; with only these settings of .env.example set."""
        settings = {name: str(port) for name, port in self.ports.items()}
        return checked(
            self.compose,
            "--env-file=/dev/null",
            *arguments,
            environment={**_without_settings(self.docker.environment), **settings, **environment},
            folder=ROOT,
        )

    def container(self, service: str) -> dict[str, Any]:
        """What the engine knows about the container of a service."""
        number = self("ps", "--all", "--quiet", service).strip()
        found: list[dict[str, Any]] = json.loads(self.docker("inspect", number))
        return found[0]

    def query(self, promql: str) -> list[dict[str, Any]]:
        """The result of an instant query."""
        address = f"http://127.0.0.1:{self.ports['PROMETHEUS_PORT']}/api/v1/query"
        with urlopen(f"{address}?{urlencode({'query': promql})}", timeout=10) as answer:
            result: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        return result

    def wait_for(self, promql: str, seconds: float) -> None:
        """Until a query has a result."""
        deadline = monotonic() + seconds
        while not self.query(promql):
            assert monotonic() < deadline, f"no result of {promql}"
            sleep(0.5)


def _without_settings(environment: Mapping[str, str]) -> dict[str, str]:
    settings = re.findall(r"^#(\w+)=", (ROOT / ".env.example").read_text(), re.MULTILINE)
    return {name: value for name, value in environment.items() if name not in settings}


@pytest.fixture
def stack(binary: Binary, newer_binary: Binary) -> Iterator[Stack]:
    """The project at an engine that has all images but Grafana's, built or stood in for."""
    for name in ("docker", "dockerd"):
        binary(name)
    busybox, compose = binary("busybox"), newer_binary("NEWER_DOCKER_COMPOSE")
    makers = (
        (prometheus_image, "prometheus", newer_binary("NEWER_PROMETHEUS")),
        (alertmanager_image, "alertmanager", newer_binary("NEWER_ALERTMANAGER")),
    )
    if os.geteuid() != 0 or Path("/sys/class/net", BRIDGE).exists():
        pytest.skip("needs to be root on a machine on which no Docker engine runs")
    place = Path(mkdtemp(prefix="docker-", dir="/tmp"))  # the path of a socket has to be short
    with private_docker(place) as docker:
        for make, name, program in makers:
            make(docker, RootFolder(place / name, busybox), SERVICES[name]["image"], program)
        root = RootFolder(place / "python", busybox)
        python_image(docker, root, PYTHON_IMAGE, "training-exporter", "transformers")
        stack = Stack(docker, compose, {name: free_port() for name in PORTS})
        stack("build", "trainer")
        try:
            yield stack
        finally:
            stack("down", "--volumes", "--timeout=1")


def test_the_stack_comes_up_tells_a_fault_and_leaves_nothing(stack: Stack) -> None:
    """As a newcomer types it, without a setting; then with an address of Slack, which is told."""
    stack("up", "--detach", "--wait", "alertmanager")
    assert "Alertmanager's page only" in stack("logs", "alertmanager-config")

    with ChatServer(address=stack.docker.gateway) as chat:
        settings = {"DEMO_OPTIONS": FAULT, "SLACK_WEBHOOK_URL": chat.slack_url}
        stack("up", "--detach", "--wait", "trainer", **settings)  # makes Alertmanager's new
        told = chat.wait(lambda messages: any("LossNaN" in m.title for m in messages), timeout=120)
        assert chat.refused == []
    message = next(m for m in told if "LossNaN" in m.title)
    assert f"http://localhost:{stack.ports['GRAFANA_PORT']}/d/training-run" in message.text
    assert f":{stack.ports['ALERTMANAGER_PORT']}/#/silences/new" in message.text

    assert [s["value"][1] for s in stack.query('up{job="training"}')] == ["1"]
    assert stack("exec", "-T", "trainer", "id", "-u").strip() == "1000"
    assert private_to_alertmanager(stack) == {"alertmanager.yml", "secrets/slack_webhook_url"}
    assert chat.slack_url not in json.dumps(stack.container("alertmanager"))
    assert published_addresses(stack) == {"127.0.0.1"}

    stack(
        "up", "--detach", "--wait", "alertmanager"
    )  # an address that is no longer set is forgotten
    assert private_to_alertmanager(stack) == {"alertmanager.yml"}

    with TrainingExporter(**OWN_RUN, port=free_port()) as own:
        own.step(loss=1.0)
        stack.wait_for('training_step{run="own"} == 1', seconds=60)

    stack("stop", "trainer")
    assert stack.container("trainer")["State"]["ExitCode"] == 0
    assert stack.query('last_over_time(training_state{state="stopped"}[5m]) == 1')

    stack("down", "--volumes")
    assert stack.docker("ps", "--all", "--quiet") == ""
    assert stack.docker("volume", "ls", "--quiet") == ""
    assert "training-exporter" not in stack.docker("network", "ls")


def private_to_alertmanager(stack: Stack) -> set[str]:
    """What its configuration consists of; all of it is nobody's and for nobody else."""
    find = ("find", "/config", "-type", "f", "-user", "nobody", "-perm", "600")
    found = stack("exec", "-T", "alertmanager", *find)
    return {path.removeprefix("/config/") for path in found.split()}


def published_addresses(stack: Stack) -> set[str]:
    """Where on this machine the services listen."""
    bound = [
        stack.container(name)["NetworkSettings"]["Ports"]
        for name in ("trainer", "prometheus", "alertmanager")
    ]
    return {b["HostIp"] for ports in bound for at in ports.values() for b in at or ()}
