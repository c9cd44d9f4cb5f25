# SPDX-License-Identifier: Apache-2.0
"""Many runs that end at random moments, each in its way, before a real Prometheus and Alertmanager.

All run side by side: what takes long is waiting for those that hang.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, NamedTuple
from urllib.parse import urlencode
from urllib.request import urlopen

import yaml

from scripts.monitoring import (
    SHIPPED,
    Monitoring,
    find_programs,
    prometheus_config,
    start_monitoring,
)
from scripts.processes import Children
from tests.ports import monitoring_ports
from training_exporter.lifecycle.blackbox_reader import Box, read_box

WORKER = Path(__file__).with_name("worker.py")
FIRST_SCRAPES_SECONDS = 240.0
"""Until each run was scraped once: who is killed before has never been there."""
MOMENTS_SECONDS = 20.0
EARLY_SECONDS = 4.0
"""Those who hang are told first, since their alert takes longest."""
ALERT_SECONDS = 60.0
STALL_SECONDS = 60.0
"""That the rule lets pass before it calls a run with fast steps stalled."""
QUIET_SECONDS = 12.0
"""Afterwards, for what should not come: two scrapes and the evaluations that follow them."""
EXIT_SECONDS = 30.0
"""The bound of `linger`."""
PACE_SECONDS = 8.0


class Ending(NamedTuple):
    """How a run ends, and what is to be seen of it then.

    Attributes:
        state: the last one that Prometheus has.
        alert: the alert that it fires, None for none that is critical.
        code: exit code of the process.
        signal: what it gets from outside, None when it does it by itself.
    """

    state: str
    alert: str | None
    code: int | None
    signal: signal.Signals | None = None


VANISHED, CRASHED, STALLED = "TrainingVanished", "TrainingCrashed", "TrainingStalled"
ENDINGS: Mapping[str, Ending] = {
    "SIGKILL": Ending("running", VANISHED, -9, signal.SIGKILL),
    "SIGTERM": Ending("running", VANISHED, -15, signal.SIGTERM),
    "os._exit": Ending("running", VANISHED, 9),
    "exception": Ending("crashed", CRASHED, 1),
    "sys.exit": Ending("stopped", None, 3),
    "Ctrl-C": Ending("stopped", None, -2, signal.SIGINT),
    "completed": Ending("completed", None, 0),
    "hang": Ending("running", STALLED, None),
    # The demo leaves by Ctrl-C, its model crashes by itself.
    "demo SIGKILL": Ending("running", VANISHED, -9, signal.SIGKILL),
    "demo Ctrl-C": Ending("stopped", None, 0, signal.SIGINT),
    "demo SIGTERM": Ending("stopped", None, 0, signal.SIGTERM),
}
NUMBERS = {
    # Before the others, since they take long to begin.
    "demo SIGKILL": 1, "demo Ctrl-C": 1, "demo SIGTERM": 1,
    "SIGKILL": 5, "SIGTERM": 4, "os._exit": 4, "exception": 5, "sys.exit": 3, "Ctrl-C": 2,
    "completed": 2, "hang": 2,
}  # fmt: skip
RUNS = {
    f"{ending.replace(' ', '-')}-{number}": ending
    for ending, count in NUMBERS.items()
    for number in range(count)
}
"""Run -> its ending, a key of ENDINGS."""


@dataclass
class Run:
    """A process, and what became of it. Times are monotonic seconds.

    Attributes:
        told: when it was told to end.
        ended: when its process had ended.
        alerts: when an alert about it was first seen in Alertmanager.
        state, scraped, fired: what Prometheus has of it at the end.
        box: its black box.
    """

    name: str
    ending: Ending
    folder: Path
    process: subprocess.Popen[bytes]
    told: float = 0.0
    ended: float | None = None
    alerts: dict[str, float] = field(default_factory=dict)
    state: str = ""
    scraped: dict[str, float] = field(default_factory=dict)
    fired: set[str] = field(default_factory=set)
    box: Box | None = None

    @property
    def diary(self) -> list[str]:
        path = self.folder / f"{self.name}.diary"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def steps(self) -> list[str]:
        """What it wrote before each step that it reported."""
        return [line for line in self.diary if line[0].isdecimal()]

    @property
    def exit_seconds(self) -> float | None:
        return None if self.ended is None else self.ended - self.told

    @property
    def alert_seconds(self) -> float | None:
        """From the end to the alert."""
        at = self.alerts.get(self.ending.alert or "")
        return None if at is None else at - self.told

    def tell(self) -> None:
        self.told = time.monotonic()
        if self.ending.signal is not None:
            self.process.send_signal(self.ending.signal)
            return
        assert self.process.stdin
        self.process.stdin.write(b"!")
        self.process.stdin.flush()


class Outcome(NamedTuple):
    """All runs at their end.

    Attributes:
        seed: of all moments.
        left: target files that a clean end has left.
        swept: target files after one more run has begun and ended.
        ports: those of the runs that somebody still listens on.
        pace: steps in a second of processor time, with and without an exporter.
    """

    seed: str
    runs: Mapping[str, Run]
    left: list[str]
    swept: list[str]
    ports: list[int]
    pace: tuple[float, float]


class Chaos:
    """The world in which it happens.

    Args:
        folder: for files.
        seed: of all moments.
    """

    def __init__(self, folder: Path, seed: str) -> None:
        self.folder = folder
        self.random = Random(seed)
        self.seed = seed
        self.targets = folder / "targets"
        self.boxes = folder / "boxes"
        self.targets.mkdir()
        self.boxes.mkdir()
        self.environment = {
            **os.environ,
            "TRAINING_EXPORTER_SD_DIR": str(self.targets),
            "TRAINING_EXPORTER_BLACKBOX_DIR": str(self.boxes),
            "TRAINING_EXPORTER_ADDRESS": "127.0.0.1",
            "TRAINING_EXPORTER_PORT": "0",
            "TRAINING_EXPORTER_GPU_METRICS": "0",
        }
        self.runs: dict[str, Run] = {}

    def happen(self) -> Outcome:
        with Children() as children:
            monitoring = self.monitoring(children)
            try:
                for name, ending in RUNS.items():
                    self.runs[name] = self.started(name, ending)
                pace = self.pace()
                self.until_scraped(monitoring)
                ports = self.ports()
                self.let_them_end(monitoring)
                time.sleep(QUIET_SECONDS)
                self.gather(monitoring)
                left = self.files_of_clean_ends()
                self.kill_all()
                return Outcome(
                    self.seed,
                    self.runs,
                    left,
                    self.files_after_one_more_run(),
                    list(filter(taken, ports)),
                    pace,
                )
            finally:
                self.kill_all()

    def monitoring(self, children: Children) -> Monitoring:
        """As shipped, but for the folder of target files."""
        monitoring = start_monitoring(
            children, self.folder, find_programs(), [], {}, ports=monitoring_ports()
        )
        alertmanager = monitoring.alertmanager.url.removeprefix("http://")
        config = yaml.safe_load(prometheus_config([], alertmanager))
        shipped = yaml.safe_load(SHIPPED.read_text())["scrape_configs"]
        for job, as_shipped in zip(config["scrape_configs"], shipped, strict=True):
            del job["static_configs"]
            interval = as_shipped["file_sd_configs"][0]["refresh_interval"]
            files = [str(self.targets / "*.json")]
            job["file_sd_configs"] = [{"files": files, "refresh_interval": interval}]
        (self.folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        monitoring.prometheus.child.signal(signal.SIGHUP)
        return monitoring

    def started(self, name: str, ending: str) -> Run:
        demo = ending.startswith("demo")
        command = self.demo(name) if demo else self.loop(name, ending)
        log = self.folder / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=output, stderr=output, env=self.environment
            )
        return Run(name, ENDINGS[ending], self.folder, process)

    def loop(self, name: str, ending: str) -> Sequence[str | Path]:
        diary = self.folder / f"{name}.diary"
        return [sys.executable, WORKER, name, ending, f"{self.seed} {name}", diary]

    def demo(self, name: str) -> Sequence[str | Path]:
        program = Path(sys.executable).with_name("training-exporter")
        return [program, "demo", "--run", name, "--port", "0", "--healthy", "--steps", "100000"]

    def pace(self) -> tuple[float, float]:
        """By processor time, since the machine has much to do besides; that of the server's threads
        is in it."""
        racers = [
            subprocess.Popen(
                [sys.executable, WORKER, "pace", how, str(PACE_SECONDS)],
                stdout=subprocess.PIPE,
                env=self.environment,
            )
            for how in ("with", "without")
        ]
        outputs = [racer.communicate(timeout=60)[0] for racer in racers]
        return float(outputs[0]), float(outputs[1])

    def until_scraped(self, monitoring: Monitoring) -> None:
        """Until Prometheus has found and scraped every run, at work."""
        deadline = time.monotonic() + FIRST_SCRAPES_SECONDS
        while missing := set(self.runs) - seen_running(monitoring):
            dead = {name for name in missing if self.runs[name].process.poll() is not None}
            logs = "".join((self.folder / f"{name}.log").read_text() for name in dead)
            assert not dead, f"ended before it was told: {dead}\n{logs}"
            assert time.monotonic() < deadline, f"not scraped: {missing}"
            time.sleep(0.5)

    def ports(self) -> list[int]:
        groups = [json.loads(path.read_text())[0] for path in self.targets.glob("*.json")]
        return [int(group["targets"][0].rpartition(":")[2]) for group in groups]

    def let_them_end(self, monitoring: Monitoring) -> None:
        """Each at its moment, and watch until all has come that should, or far too long."""
        began = time.monotonic()
        most = {name: EARLY_SECONDS if run.ending.code is None else MOMENTS_SECONDS
                for name, run in self.runs.items()}  # fmt: skip
        moments = {name: began + self.random.uniform(0, most[name]) for name in self.runs}
        deadline = began + MOMENTS_SECONDS + STALL_SECONDS + ALERT_SECONDS
        while time.monotonic() < deadline:
            now = time.monotonic()
            for name, run in self.runs.items():
                if not run.told and now >= moments[name]:
                    run.tell()
                if run.ended is None and run.process.poll() is not None:
                    run.ended = now
            self.note_alerts(monitoring)
            if all(map(is_settled, self.runs.values())):
                return
            time.sleep(0.05)

    def note_alerts(self, monitoring: Monitoring) -> None:
        for alert in asked(f"{monitoring.alertmanager.url}/api/v2/alerts"):
            labels, now = alert["labels"], time.monotonic()
            if labels.get("run") in self.runs:
                self.runs[labels["run"]].alerts.setdefault(labels["alertname"], now)

    def gather(self, monitoring: Monitoring) -> None:
        """What Prometheus and the black boxes have."""
        for series in query(monitoring, "last_over_time(training_state[15m]) == 1"):
            if series["metric"]["run"] in self.runs:
                self.runs[series["metric"]["run"]].state = series["metric"]["state"]
        counters = {
            "steps": "training_steps_total",
            "tokens": "training_tokens_total",
            "NaN": 'training_non_finite_steps_total{signal="loss"}',
            "anomalies": 'training_anomalies_total{kind="non_finite"}',
        }
        for what, selector in counters.items():
            for series in query(monitoring, f"max by (run) (max_over_time({selector}[15m]))"):
                if series["metric"]["run"] in self.runs:
                    self.runs[series["metric"]["run"]].scraped[what] = float(series["value"][1])
        firing = 'count_over_time(ALERTS{alertstate="firing",severity="critical"}[15m])'
        for series in query(monitoring, firing):
            if series["metric"].get("run") in self.runs:
                self.runs[series["metric"]["run"]].fired.add(series["metric"]["alertname"])
        for path in self.boxes.glob("*.blackbox"):
            box = read_box(path)
            if box.run in self.runs:
                self.runs[box.run].box = box

    def files_of_clean_ends(self) -> list[str]:
        """Target files that a process has left which had the time to remove its own."""
        clean = [name for name, run in self.runs.items() if run.ending.state != "running"]
        files = [path.name for path in self.targets.iterdir()]
        return [file for file in files if any(file.startswith(f"{name}-r") for name in clean)]

    def files_after_one_more_run(self) -> list[str]:
        """Whose process removes what those have left that were killed."""
        run = self.started("completed-later", "completed")
        with run.process:
            deadline = time.monotonic() + 20
            while not run.steps and time.monotonic() < deadline:
                time.sleep(0.1)
            run.tell()
            run.process.wait(timeout=EXIT_SECONDS)
        return [path.name for path in self.targets.iterdir()]

    def kill_all(self) -> None:
        for run in self.runs.values():
            run.process.kill()
            run.process.wait()
            if run.process.stdin:
                with suppress(OSError):
                    run.process.stdin.close()


def is_settled(run: Run) -> bool:
    """Whether it has ended and its alert has come."""
    ended = run.ended is not None or run.ending.code is None
    return bool(run.told and ended and (run.ending.alert is None or run.ending.alert in run.alerts))


def seen_running(monitoring: Monitoring) -> set[str]:
    found = query(monitoring, 'training_state{state="running"} == 1')
    return {series["metric"]["run"] for series in found}


def taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def query(monitoring: Monitoring, text: str) -> list[Any]:
    address = f"{monitoring.prometheus.url}/api/v1/query?{urlencode({'query': text})}"
    found: list[Any] = asked(address)["data"]["result"]
    return found


def asked(url: str) -> Any:
    with urlopen(url, timeout=60) as answer:
        return json.load(answer)


def table(outcome: Outcome) -> str:
    """For a person: all runs, and what the exporter did to the pace of the training."""
    head = f"{'run':17}{'exit':>6}{'after':>8}  {'state':11}{'alert':18}{'after':>7}{'steps':>7}{'scraped':>9}{'box':>6}"  # noqa: E501
    rows = [_row(run) for run in outcome.runs.values()]
    ours, others = outcome.pace
    pace = f"steps in a second of processor time, with and without: {ours:.1f}, {others:.1f}"
    pace += f", which is {ours / others:.3f}"
    return "\n".join([f"CHAOS_SEED={outcome.seed}", head, *rows, pace])


def _row(run: Run) -> str:
    def seconds(value: float | None) -> str:
        return "-" if value is None else f"{value:.1f} s"

    box = "-" if run.box is None else f"{run.box.counters.totals.steps:.0f}"
    return (
        f"{run.name:17}{run.process.returncode!s:>6}{seconds(run.exit_seconds):>8}  {run.state:11}"
        f"{run.ending.alert or '-':18}{seconds(run.alert_seconds):>7}{len(run.steps):>7}"
        f"{run.scraped.get('steps', 0):>9.0f}{box:>6}"
    )
