# SPDX-License-Identifier: Apache-2.0
"""A real Alertmanager with our configuration, its times scaled, that tells a local chat server."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest

from scripts.alertmanager_config import as_text, derive, load, secrets_from_environment, version_of
from tests.conftest import ROOT
from tests.e2e.chat_server import ChatServer
from tests.ports import free_port

CONFIG = ROOT / "alertmanager" / "alertmanager.yml"
TEMPLATES = ROOT / "alertmanager" / "templates"

LIFETIME = 2.0
"""Seconds that an event alert lives, in place of 300."""

INTERVAL = 0.4
SCALED = {
    "0s": "0s",
    "3s": "300ms",
    "5s": "400ms",
    "310s": "2600ms",
    "1h": "8s",
    "4h": "10s",
    "24h": "60s",
}


def newer_alertmanager() -> str:
    """What NEWER_ALERTMANAGER names; without it, the test is skipped, or fails in CI."""
    newer = os.environ.get("NEWER_ALERTMANAGER")
    if newer:
        return newer
    message = "NEWER_ALERTMANAGER names no Alertmanager; get one with: scripts/get-binaries.sh"
    if os.environ.get("REQUIRE_BINARIES") == "1":
        pytest.fail(message)
    pytest.skip(message)


def scaled(route: dict[str, Any]) -> dict[str, Any]:
    """The route with minutes as seconds; a time that is not in the table is a KeyError."""
    route = deepcopy(route)
    for key in ("group_wait", "group_interval", "repeat_interval"):
        if key in route:
            route[key] = SCALED[route[key]]
    route["routes"] = [scaled(child) for child in route.get("routes", [])]
    return route


def alert(alertname: str, run: str, **labels: str) -> dict[str, Any]:
    """An alert as Prometheus posts it, with labels and annotations like ours."""
    given = {"severity": "warning", "component": "training", "lifecycle": "event", **labels}
    return {
        "labels": {"alertname": alertname, "run": run, **given},
        "annotations": {
            "summary": f"{alertname} in run {run}.",
            "description": "rank 3, step 1234: loss 17.2, usual 2.1.",
            "cause": "The learning rate is too high.",
            "action": "Look at the gradient norm.",
            "runbook_url": f"https://example.org/runbooks.md#{alertname.lower()}",
            "dashboard_url": f"http://localhost:3000/d/training-run?var-run={run}",
        },
    }


@dataclass
class Alertmanager:
    """One that runs, and the chat server that it tells."""

    url: str
    chat: ChatServer
    log: Path

    def post(self, *alerts: dict[str, Any], ends_in: float) -> None:
        """Makes alerts known as firing; they end by themselves, or at once with 0."""
        now = datetime.now(timezone.utc)
        begin = now if ends_in > 0 else now - timedelta(seconds=1)
        end = now + timedelta(seconds=ends_in)
        times = {"startsAt": begin.isoformat(), "endsAt": end.isoformat()}
        body = json.dumps([{**one, **times} for one in alerts]).encode()
        request = Request(
            f"{self.url}/api/v2/alerts", body, {"Content-Type": "application/json"}, method="POST"
        )
        with urlopen(request, timeout=5):
            pass

    def titles(self, run: str, service: str = "slack") -> list[str]:
        """The headings of the messages about this run, in their order."""
        return [
            message.title
            for message in list(self.chat.messages)
            if message.service == service and message.title.endswith(f"· {run}")
        ]

    def wait_for(self, run: str, count: int, timeout: float = 5.0) -> list[str]:
        """Waits until Slack has so many messages about this run."""
        self.chat.wait(lambda _: len(self.titles(run)) >= count, timeout)
        return self.titles(run)


@contextmanager
def running(binary: str, folder: Path, grafana_url: str | None = None) -> Iterator[Alertmanager]:
    """Starts Alertmanager with our configuration and both webhooks; stops it at the end."""
    with ChatServer() as chat:
        secrets = folder / "secrets"
        urls = {"SLACK_WEBHOOK_URL": chat.slack_url, "DISCORD_WEBHOOK_URL": chat.discord_url}
        secrets_from_environment(urls, secrets)
        config = derive(
            load(CONFIG),
            secrets=secrets,
            templates=str(TEMPLATES),
            version=version_of(binary),
            grafana_url=grafana_url,
        )
        config["route"] = scaled(config["route"])
        path = folder / "alertmanager.yml"
        path.write_text(as_text(config))
        with started(binary, path, folder) as url:
            yield Alertmanager(url, chat, folder / "alertmanager.log")


@contextmanager
def started(binary: str, config: Path, folder: Path) -> Iterator[str]:
    """Alertmanager as a process on a free port of the loopback interface; gives its address."""
    port = free_port()
    command = [
        binary, f"--config.file={config}", f"--storage.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}", "--cluster.listen-address=",
        "--web.external-url=http://localhost:9093",
    ]  # fmt: skip
    with (folder / "alertmanager.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            wait_until_ready(process, f"http://127.0.0.1:{port}", folder / "alertmanager.log")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(timeout=10)


def wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Returns when it answers; fails with its log when it has ended instead."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            with urlopen(f"{url}/-/ready", timeout=1):
                return
        except (URLError, OSError):
            time.sleep(0.05)
    raise TimeoutError(f"Alertmanager is not ready:\n{log.read_text()}")
