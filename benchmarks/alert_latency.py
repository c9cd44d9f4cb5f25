# SPDX-License-Identifier: Apache-2.0
"""From the step that goes wrong to the message at the receiver, with everything as it is shipped.

Goal: critical alerts in under 5 s at the median and under 12 s at worst. Many small training
processes, each with a TrainingExporter of its own, do something wrong at a random moment and write
down when; a real Prometheus scrapes them, a real Alertmanager tells a local server that is shaped
like Slack and Discord, which notes when. What cannot be undercut stands beside it: the worst case
is the sum of scrape interval, interval of the rule group, `for`, and `group_wait`.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import sleep, time
from typing import Any

import yaml

from scripts.monitoring import ROOT, find_programs, start_monitoring
from scripts.processes import Children, free_port
from tests.e2e.chat_server import ChatServer, Message
from tests.e2e.watched_demos import FIRST_PORT, about, alert_of, urls_of
from training_exporter import StepSignals, TrainingExporter, catalog

EACH = 12
"""Faults of each kind."""
ALERTS = {
    "nan": "TrainingLossNaN",
    "crash": "TrainingCrashed",
    "kill": "TrainingVanished",
    "spike": "TrainingLossSpike",
}
"""Kind of fault -> the alert that tells it."""
STEP_SECONDS = 0.1
HEALTHY_SECONDS = (25.0, 45.0)
"""How long a run is well: its detectors have warmed up by then, and it has been scraped."""
PATIENCE_SECONDS = 40.0
NOW = "It goes wrong at"


def main(arguments: list[str]) -> None:
    runs = {f"{kind}{index}": kind for kind in ALERTS for index in range(EACH)}
    ports = {run: free_port(FIRST_PORT + index) for index, run in enumerate(runs)}
    targets = [f"127.0.0.1:{port}" for port in ports.values()]
    with (
        TemporaryDirectory() as folder,
        ChatServer() as chat,
        Children() as children,
    ):
        start_monitoring(children, Path(folder), find_programs(), targets, urls_of(chat))
        for run, kind in runs.items():
            command = [sys.executable, "-m", "benchmarks.alert_latency", kind, run, str(ports[run])]
            children.start(run, command, Path(folder) / run)
        with suppress(TimeoutError):
            seconds = HEALTHY_SECONDS[1] + PATIENCE_SECONDS
            chat.wait(lambda messages: all_told(messages, runs), seconds)
        for kind in ALERTS:
            report(kind, seconds_to_message(chat, Path(folder), runs, kind))


def all_told(messages: list[Message], runs: Mapping[str, str]) -> bool:
    return all(arrival(messages, run, ALERTS[kind]) is not None for run, kind in runs.items())


def arrival(messages: list[Message], run: str, alert: str) -> float | None:
    """When the first message about an alert of a run was there, if it came."""
    times = (m.arrived for m in about(messages, run, "slack") if alert_of(m) == alert)
    return next(times, None)


def seconds_to_message(
    chat: ChatServer, folder: Path, runs: Mapping[str, str], kind: str
) -> list[float | None]:
    """For each fault of a kind; None where no message came."""
    delays: list[float | None] = []
    for run in (run for run, its_kind in runs.items() if its_kind == kind):
        came = arrival(chat.messages, run, ALERTS[kind])
        went_wrong = float((folder / run).read_text().partition(NOW)[2].split()[0])
        delays.append(None if came is None else came - went_wrong)
    return delays


def report(kind: str, delays: list[float | None]) -> None:
    """A line with what was measured, and one with the intervals."""
    came = sorted(delay for delay in delays if delay is not None)
    lost = len(delays) - len(came)
    measured = (
        f"median {median(came):5.2f} s, worst {came[-1]:5.2f} s, best {came[0]:5.2f} s"
        if came
        else "nothing"
    )
    print(f"{ALERTS[kind]:20} {len(delays)} faults, {lost} lost: {measured}")
    parts = intervals(ALERTS[kind])
    terms = " + ".join(f"{name} {seconds:g}" for name, seconds in parts.items())
    print(f"{'':20} sum of the intervals {sum(parts.values()):g} s = {terms}", flush=True)


def intervals(alert: str) -> dict[str, float]:
    """What sets how late an alert can be, in seconds, from the shipped files."""
    shipped = yaml.safe_load((ROOT / "prometheus" / "prometheus.yml").read_text())["global"]
    rules = yaml.safe_load((ROOT / "alertmanager" / "rules" / "alerts.yml").read_text())
    group, rule = next(
        (group, rule)
        for group in rules["groups"]
        for rule in group["rules"]
        if rule.get("alert") == alert
    )
    parts = {
        "scrape": shipped["scrape_interval"],
        "evaluation": group.get("interval", shipped["evaluation_interval"]),
        "for": rule.get("for", "0s"),
        "group_wait": group_wait(rule["labels"]),
    }
    return {name: float(text.removesuffix("s")) for name, text in parts.items()}


def group_wait(labels: Mapping[str, str]) -> str:
    """Of the first route below ours that asks for nothing but these labels."""
    root = yaml.safe_load((ROOT / "alertmanager" / "alertmanager.yml").read_text())["route"]
    ours = {f'{name}="{value}"' for name, value in labels.items()}
    routes: list[dict[str, Any]] = root["routes"][0]["routes"]
    route = next(route for route in routes if ours.issuperset(route["matchers"]))
    return str(route.get("group_wait", root["group_wait"]))


def train(kind: str, run: str, port: int) -> None:
    """A run that goes well for a while, and says when it does not."""
    noise = random.Random(run)
    healthy = noise.uniform(*HEALTHY_SECONDS)
    with TrainingExporter(run=run, rank=0, port=port, address="127.0.0.1") as exporter:
        exporter.set_state(catalog.RUNNING)
        for step in range(1, int(healthy / STEP_SECONDS)):
            observe(exporter, step, noise.gauss(2.0, 0.02))
            sleep(STEP_SECONDS)
        print(NOW, time(), flush=True)
        FAULTS[kind](exporter, step + 1)
        sleep(PATIENCE_SECONDS)


def observe(exporter: TrainingExporter, step: int, loss: float) -> None:
    exporter.observe(StepSignals(step, time(), loss=loss, step_seconds=STEP_SECONDS))


def crash(exporter: TrainingExporter, step: int) -> None:
    raise RuntimeError("the fault")


FAULTS: dict[str, Callable[[TrainingExporter, int], None]] = {
    "nan": lambda exporter, step: observe(exporter, step, float("nan")),
    "spike": lambda exporter, step: observe(exporter, step, 20.0),
    "crash": crash,
    "kill": lambda exporter, step: os.kill(os.getpid(), signal.SIGKILL),
}

if __name__ == "__main__":
    train(sys.argv[1], sys.argv[2], int(sys.argv[3]))
