# SPDX-License-Identifier: Apache-2.0
"""Real demos, side by side, watched by real Prometheuses and Alertmanagers as they are shipped.

All scenarios run at once, and every version of the programs watches the same processes: what takes
long is waiting for the one that stalls.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode
from urllib.request import urlopen

from scripts.monitoring import Monitoring, Programs, start_monitoring
from scripts.processes import Child, Children
from tests.e2e.chat_server import ChatServer, Message
from tests.ports import free_port, monitoring_ports

SERVICES = ("slack", "discord")
FIRST_PORT = 21400
"""Below the ports that the system gives to clients: a scrape of a demo that is not there yet must
not take the very port."""
DEADLINE_SECONDS = 180.0
QUIET_SECONDS = 12.0
"""Afterwards, for what should not come: two scrapes and the evaluations that follow them."""

Expected = Mapping[str, frozenset[str]]
"""Run -> names of its alerts."""


class Harvest(NamedTuple):
    """What one Prometheus and one Alertmanager made of all runs.

    Attributes:
        messages: what the chat server took, in order.
        refused: what it did not take.
        fired: run -> names of the alerts that Prometheus ever had as firing.
        suppressed: run -> names of the alerts that Alertmanager has, but keeps to itself.
    """

    messages: tuple[Message, ...]
    refused: tuple[str, ...]
    fired: dict[str, set[str]]
    suppressed: dict[str, set[str]]

    def about(self, run: str, service: str) -> list[Message]:
        """The messages of a service about a run."""
        return about(self.messages, run, service)


def about(messages: tuple[Message, ...] | list[Message], run: str, service: str) -> list[Message]:
    return [
        message
        for message in messages
        if message.service == service and message.title.endswith(f"· {run}")
    ]


def alert_of(message: Message) -> str:
    """Its alert, from a title such as "🔴 CRITICAL: TrainingLossNaN · run"."""
    return message.title.split(": ")[1].split(" · ")[0]


def harvest(
    folder: Path,
    versions: Mapping[str, Programs],
    runs: Mapping[str, tuple[str, ...]],
    expected: Expected,
) -> dict[str, Harvest]:
    """Run all demos until the expected messages are there and some time has passed.

    Args:
        folder: for files.
        versions: the programs that watch, by a name of their version.
        runs: name of a run -> its options.
        expected: the alerts to wait for. What else comes is for the caller to judge.
    """
    with ExitStack() as stack:
        children = stack.enter_context(Children())
        ports = {run: free_port(FIRST_PORT + index) for index, run in enumerate(runs)}
        targets = [f"127.0.0.1:{port}" for port in ports.values()]
        watchers = {}
        for version, programs in versions.items():
            chat = stack.enter_context(ChatServer())
            (folder / version).mkdir()
            watchers[version] = (
                chat,
                start_monitoring(
                    children,
                    folder / version,
                    programs,
                    targets,
                    urls_of(chat),
                    ports=monitoring_ports(),
                ),
            )
        for run, options in runs.items():
            start_demo(children, folder / f"{run}.log", run, ports[run], options)
        wait_for_all([chat for chat, _ in watchers.values()], expected)
        time.sleep(QUIET_SECONDS)
        return {
            version: gathered(chat, monitoring) for version, (chat, monitoring) in watchers.items()
        }


def urls_of(chat: ChatServer) -> dict[str, str]:
    return {"SLACK_WEBHOOK_URL": chat.slack_url, "DISCORD_WEBHOOK_URL": chat.discord_url}


def start_demo(
    children: Children, log: Path, run: str, port: int, options: tuple[str, ...]
) -> Child:
    program = Path(sys.executable).with_name("training-exporter")
    environment = {**os.environ, "TRAINING_EXPORTER_ADDRESS": "127.0.0.1", "COLUMNS": "200"}
    command: list[str | Path] = [program, "demo", "--run", run, "--port", str(port), *options]
    return children.start(f"the demo {run}", command, log, environment)


def wait_for_all(chats: list[ChatServer], expected: Expected) -> None:
    """Until every service of every chat server has them all, or far too long."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while missing(chats, expected) and time.monotonic() < deadline:
        time.sleep(0.5)


def missing(chats: list[ChatServer], expected: Expected) -> bool:
    return any(
        alerts - {alert_of(message) for message in about(list(chat.messages), run, service)}
        for chat in chats
        for service in SERVICES
        for run, alerts in expected.items()
    )


def gathered(chat: ChatServer, monitoring: Monitoring, *, minutes: int = 15) -> Harvest:
    """What there is to see, of so many minutes."""
    # By the time, not by the state at the end: an alert that came and went is one that fired.
    query = urlencode({"query": f'count_over_time(ALERTS{{alertstate="firing"}}[{minutes}m])'})
    fired = asked(f"{monitoring.prometheus.url}/api/v1/query?{query}")["data"]["result"]
    held = asked(f"{monitoring.alertmanager.url}/api/v2/alerts?active=false")
    return Harvest(
        tuple(chat.messages),
        tuple(chat.refused),
        names_by_run([series["metric"] for series in fired]),
        names_by_run([alert["labels"] for alert in held]),
    )


def asked(url: str) -> Any:
    with urlopen(url, timeout=10) as answer:
        return json.load(answer)


def names_by_run(labels: list[dict[str, str]]) -> dict[str, set[str]]:
    names: dict[str, set[str]] = {}
    for each in labels:
        names.setdefault(each.get("run", ""), set()).add(each["alertname"])
    return names
