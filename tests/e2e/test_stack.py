# SPDX-License-Identifier: Apache-2.0
"""`make stack` as somebody types it: real programs, signals, and what is left afterwards."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from scripts.stack import ALERTS
from tests.conftest import ROOT
from tests.e2e.chat_server import ChatServer
from training_exporter.demo.plan import FAULTS

pytestmark = pytest.mark.e2e

Binary = Callable[[str], str]
ADDRESSES = {
    name: re.compile(rf"^{name} +(http://localhost:\d+)", re.MULTILINE)
    for name in ("Exporter", "Alerts", "Alertmanager")
}
PATIENCE_SECONDS = 180.0
"""On a busy machine torch and transformers take a minute to import."""
SHORT = ("--healthy", "--steps", "100000", "--eval-every", "0")


class Stack:
    """A stack that runs.

    Args:
        process: the process of `scripts.stack`.
        log: its output.
        folder: the only place for its temporary files.
        mark: is in the environment of it and of all that it starts.
    """

    def __init__(self, process: subprocess.Popen[bytes], log: Path, folder: Path, mark: str):
        self.process = process
        self.log = log
        self.folder = folder
        self.mark = mark.encode()

    @property
    def output(self) -> str:
        return self.log.read_text()

    def until(self, holds: Callable[[], object], *, seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until something holds, or fail with what the stack has said."""
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, f"did not come to pass:\n{self.output}"
            time.sleep(0.1)

    def url(self, name: str) -> str:
        self.until(lambda: ADDRESSES[name].search(self.output))
        found = ADDRESSES[name].search(self.output)
        assert found
        return found.group(1)

    def asked(self, name: str, path: str) -> Any:
        with urlopen(f"{self.url(name)}{path}", timeout=10) as answer:
            return json.load(answer)

    def processes(self) -> dict[int, str]:
        """All processes of this stack by number, with their names, itself among them."""
        return {
            int(process.name): (process / "comm").read_text().strip()
            for process in Path("/proc").iterdir()
            if process.name.isdecimal() and self.mark in _environment(process)
        }

    def number(self, name: str) -> int:
        """The number of the process with a name, as soon as there is one."""
        self.until(lambda: name in self.processes().values())
        return next(number for number, what in self.processes().items() if what == name)

    def ends(self, number: signal.Signals | None = None, *, seconds: float = 30) -> int:
        """Its exit code, after a signal or by itself."""
        if number is not None:
            self.process.send_signal(number)
        return self.process.wait(timeout=seconds)

    def left(self) -> list[object]:
        """Processes, files and ports in use that it left behind."""
        ports = [int(url.rpartition(":")[2]) for url in map(self.url, ADDRESSES)]
        used = [port for port in ports if not _free(port)]
        return [*self.processes().values(), *self.folder.rglob("*"), *used]


def _environment(process: Path) -> bytes:
    try:
        return (process / "environ").read_bytes()
    except OSError:
        return b""


def _free(port: int) -> bool:
    with socket.socket() as candidate:
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return candidate.connect_ex(("127.0.0.1", port)) != 0


Start = Callable[..., AbstractContextManager[Stack]]


@pytest.fixture
def start(tmp_path: Path, binary: Binary) -> Start:
    binary("prometheus")
    binary("prometheus-alertmanager")
    folder = tmp_path / "temporary"
    folder.mkdir()
    log = tmp_path / "output.txt"
    mark = f"STACK_UNDER_TEST={tmp_path}"

    @contextmanager
    def running(*options: str, **environment: str) -> Iterator[Stack]:
        command = [sys.executable, "-m", "scripts.stack", *options]
        own = {
            **_without_addresses(),
            "TMPDIR": str(folder),
            "PYTHONUNBUFFERED": "1",
            **dict([mark.split("=", 1)]),
            **environment,
        }
        with (
            log.open("wb") as output,
            subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=own, cwd=ROOT
            ) as process,
        ):
            stack = Stack(process, log, folder, mark)
            try:
                yield stack
            finally:
                for number in stack.processes():
                    with suppress(ProcessLookupError):
                        os.kill(number, signal.SIGKILL)

    return running


def _without_addresses() -> dict[str, str]:
    hidden = {"SLACK_WEBHOOK_URL", "DISCORD_WEBHOOK_URL"}
    return {name: value for name, value in os.environ.items() if name not in hidden}


@pytest.mark.parametrize("version", ["installed", "newer"])
def test_the_shipped_configuration_is_valid(binary: Binary, version: str) -> None:
    """Prometheus takes it from the checkout, and finds the rules from there."""
    promtool = binary("promtool") if version == "installed" else newer_promtool()
    checked = subprocess.run(
        [promtool, "check", "config", ROOT / "prometheus" / "prometheus.yml"],
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert checked.returncode == 0, checked.stderr
    found = re.findall(r"(\d+) rules? found", checked.stdout)
    assert sum(map(int, found)) > 20, checked.stdout


def newer_promtool() -> str:
    path = os.environ.get("NEWER_PROMTOOL")
    if path is None:
        message = "NEWER_PROMTOOL names no promtool; get one with: scripts/get-binaries.sh"
        if os.environ.get("REQUIRE_BINARIES") == "1":
            pytest.fail(message)
        pytest.skip(message)
    return path


def test_what_is_promised_are_faults_of_the_demo_and_alerts_of_the_rules() -> None:
    """Each fault, and nothing that no rule has."""
    rules = (ROOT / "alertmanager" / "rules" / "alerts.yml").read_text()
    promised = re.findall(r"Training\w+", " ".join(ALERTS.values()))

    assert set(ALERTS) == set(FAULTS)
    assert [name for name in promised if f"alert: {name}\n" not in rules] == []


def test_all_parts_are_up_and_know_each_other_until_ctrl_c(start: Start) -> None:
    """Prometheus scrapes the demo, has the rules and knows Alertmanager; then nothing is left."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with start(*SHORT, "--port", str(port)) as stack:
            assert f"Port {port} is taken; {stack.url('Exporter')} is used instead." in stack.output
            assert "SLACK_WEBHOOK_URL and DISCORD_WEBHOOK_URL are not set" in stack.output

            stack.until(lambda: scraped(stack) == {"up"})
            rules = stack.asked("Alerts", "/api/v1/rules")["data"]["groups"]
            assert any(
                rule["name"] == "TrainingLossNaN" for group in rules for rule in group["rules"]
            )
            known = stack.asked("Alerts", "/api/v1/alertmanagers")["data"]["activeAlertmanagers"]
            port = stack.url("Alertmanager").rpartition(":")[2]
            assert [each["url"] for each in known] == [f"http://127.0.0.1:{port}/api/v2/alerts"]
            stack.until(lambda: alerts(stack) == {"TrainingStarted"})
            assert listens_on_loopback_only(stack)
            assert "TrainingStarted" in shown_alerts(stack)

            assert stack.ends(signal.SIGINT) == 0
            assert stack.left() == []
            assert "Traceback" not in stack.output


def scraped(stack: Stack) -> set[str]:
    targets = stack.asked("Alerts", "/api/v1/targets")["data"]["activeTargets"]
    return {target["health"] for target in targets}


def alerts(stack: Stack) -> set[str]:
    return {alert["labels"]["alertname"] for alert in stack.asked("Alertmanager", "/api/v2/alerts")}


def shown_alerts(stack: Stack) -> str:
    """The page whose address it prints; packages differ in where it is."""
    address = re.search(r"^Alerts +(\S+)", stack.output, re.MULTILINE)
    assert address
    with urlopen(address.group(1), timeout=10) as answer:
        return str(answer.read().decode())


def listens_on_loopback_only(stack: Stack) -> bool:
    """Looked up in the kernel's tables of listening sockets, IPv6's among them."""
    tables = [Path(f"/proc/net/{name}").read_text() for name in ("tcp", "tcp6")]
    rows = [line.split() for table in tables for line in table.splitlines()[1:]]
    listening = [address for _, address, _, state, *_ in rows if state == "0A"]
    ports = {int(stack.url(name).rpartition(":")[2]) for name in ADDRESSES}
    ours = [address for address in listening if int(address.rpartition(":")[2], 16) in ports]
    return sorted(ours) == sorted(f"0100007F:{port:04X}" for port in ports)


def test_the_end_of_the_run_is_not_the_end(start: Start) -> None:
    """Who makes it crash wants the message and the page; then SIGTERM ends all, and nothing is
    left."""
    # Late enough to be scraped before, which a Prometheus begins some seconds after its start.
    crash = ("--fault", "crash@260", "--steps", "300")
    with ChatServer() as chat, start(*crash, SLACK_WEBHOOK_URL=chat.slack_url) as stack:
        stack.until(lambda: "The run is over; its page stays until Ctrl-C." in stack.output)
        with urlopen(stack.url("Exporter"), timeout=10) as page:
            assert "crashed" in page.read().decode()
        chat.wait(lambda messages: any("TrainingCrashed" in m.title for m in messages), timeout=30)
        assert re.search(r"^Messages +slack$", stack.output, re.MULTILINE)

        assert stack.ends(signal.SIGTERM) == 0
        assert stack.left() == []
        assert chat.slack_url not in stack.output


def test_a_demo_that_is_killed_is_told(start: Start) -> None:
    """Somebody wants to see what the alerts make of it."""
    with start(*SHORT) as stack:
        os.kill(stack.number("training-export"), signal.SIGKILL)
        stack.until(lambda: "The demo ended with exit code -9. Prometheus and" in stack.output)

        assert stack.ends(signal.SIGINT) == 0
        assert stack.left() == []


def test_all_may_end_with_the_run_and_its_report_stays(start: Start) -> None:
    """Without a person: the exit code is the demo's, and the report that it told to read is
    there."""
    faults = ("--fault", "nan@20", "--fault", "crash@30")
    with start(*faults, "--steps", "40", "--linger", "0") as stack:
        assert stack.ends(seconds=90) == 1
        told = re.search(r"training-exporter explain (\S+)$", stack.output, re.MULTILINE)
        assert told
        report = Path(told.group(1))
        assert stack.left() == [report.parent, report]


@pytest.mark.parametrize(
    ("program", "name"), [("prometheus", "Prometheus"), ("prometheus-aler", "Alertmanager")]
)
def test_one_that_dies_takes_the_others_along(start: Start, program: str, name: str) -> None:
    """With a line that says which, and what it said last."""
    with start(*SHORT) as stack:
        stack.url("Exporter")
        os.kill(stack.number(program), signal.SIGKILL)

        assert stack.ends() == 1
        assert f"Error: {name} ended with exit code -9.\n    " in stack.output
        assert "msg=" in stack.output
        assert stack.left() == []


def test_an_option_that_the_demo_refuses(start: Start) -> None:
    """Its own message, its own exit code, and nothing is left."""
    with start("--fault", "nonsense@3") as stack:
        assert stack.ends() == 2
        assert "names no fault: write KIND@STEP" in stack.output
        assert stack.left() == []


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            {"PATH": "/nowhere"},
            "Error: prometheus was not found; get it with:"
            " apt-get install prometheus prometheus-alertmanager, or put upstream's on PATH\n",
        ),
        (
            {"SLACK_WEBHOOK_URL": "secret words"},
            "Error: SLACK_WEBHOOK_URL is not an address: it must begin with https:// (or http://)\n",
        ),
    ],
    ids=["a program is missing", "an address is none"],
)
def test_what_cannot_begin(start: Start, environment: dict[str, str], message: str) -> None:
    """One line, exit code 2, and nothing was started."""
    with start(**environment) as stack:
        assert stack.ends() == 2
        assert stack.output == message
        assert not list(stack.folder.iterdir())
