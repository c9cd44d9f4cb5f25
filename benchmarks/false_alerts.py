# SPDX-License-Identifier: Apache-2.0
"""Messages about healthy runs: demos without faults, each with a seed of its own. Goal: none.

That a run began and that it is complete are no alarms; everything else is a false one. But if
others take the cores meanwhile, steps do become much slower, and TrainingThroughputDrop is right:
see the load of the machine, which the demos alone bring to about 2.
"""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic, sleep

from scripts.monitoring import find_programs, start_monitoring
from scripts.processes import Child, Children, free_port
from tests.e2e.chat_server import ChatServer
from tests.e2e.watched_demos import (
    FIRST_PORT,
    QUIET_SECONDS,
    alert_of,
    gathered,
    start_demo,
    urls_of,
)

SEEDS = range(10)
STEPS = 600
AT_ONCE = 2
"""Each demo computes on half of the cores."""
NO_ALARMS = {"TrainingStarted", "TrainingCompleted"}


def main(arguments: list[str]) -> None:
    ports = {f"seed{seed}": free_port(FIRST_PORT + seed) for seed in SEEDS}
    targets = [f"127.0.0.1:{port}" for port in ports.values()]
    with (
        TemporaryDirectory() as folder,
        ChatServer() as chat,
        Children() as children,
    ):
        monitoring = start_monitoring(
            children, Path(folder), find_programs(), targets, urls_of(chat)
        )
        started = monotonic()
        demos = run_all(children, Path(folder), ports)
        sleep(QUIET_SECONDS)
        minutes = (monotonic() - started) / 60
        fired = gathered(chat, monitoring, minutes=round(minutes) + 2).fired
        report(demos, fired, [alert_of(message) for message in chat.messages], minutes)


def run_all(children: Children, folder: Path, ports: dict[str, int]) -> dict[str, Child]:
    """Some at a time, until all have ended."""
    demos: dict[str, Child] = {}
    for run, port in ports.items():
        while sum(demo.code is None for demo in demos.values()) >= AT_ONCE:
            sleep(0.5)
        options = ("--healthy", "--steps", str(STEPS), "--seed", run.removeprefix("seed"))
        demos[run] = start_demo(children, folder / f"{run}.log", run, port, options)
    while any(demo.code is None for demo in demos.values()):
        sleep(0.5)
    return demos


def report(
    demos: dict[str, Child], fired: dict[str, set[str]], told: list[str], minutes: float
) -> None:
    whole = [
        run
        for run, demo in demos.items()
        if demo.code == 0 and NO_ALARMS.issubset(fired.get(run, set()))
    ]
    false = {run: sorted(names - NO_ALARMS) for run, names in fired.items() if names - NO_ALARMS}
    load = os.getloadavg()[2]
    print(f"{len(demos)} healthy runs of {STEPS} steps in {minutes:.1f} minutes, load {load:.1f}")
    print(f"told as begun and as complete: {len(whole)}")
    print(f"false alerts that fired: {false or 'none'}")
    print(f"messages that are alarms: {[name for name in told if name not in NO_ALARMS] or 'none'}")
