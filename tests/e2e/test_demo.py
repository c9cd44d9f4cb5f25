# SPDX-License-Identifier: Apache-2.0
"""The demo as a newcomer starts it: a process of its own, with a port and signals."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

pytestmark = pytest.mark.e2e

ADDRESS = re.compile(r"http://localhost:\d+")
PATIENCE_SECONDS = 300.0
"""On a busy machine torch and transformers take a minute to import, and 250 steps some more."""


class Demo:
    """A demo that runs."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log

    @property
    def output(self) -> str:
        return self.log.read_text()

    def until(self, holds: Callable[[], object], *, seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until something holds, or fail with what the demo has said."""
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, f"did not come to pass:\n{self.output}"
            time.sleep(0.1)

    def url(self) -> str:
        self.until(lambda: ADDRESS.search(self.output))
        found = ADDRESS.search(self.output)
        assert found
        return found.group()

    def page(self, path: str) -> str:
        with urlopen(f"{self.url()}{path}", timeout=10) as answer:
            return str(answer.read().decode())

    def metrics(self) -> dict[tuple[str, str], float]:
        """Values by name and by the label that is neither run nor rank."""
        return {
            (sample.name, sample.labels.get("kind", sample.labels.get("state", ""))): sample.value
            for family in text_string_to_metric_families(self.page("/metrics"))
            for sample in family.samples
        }

    def found(self) -> set[str]:
        return {
            kind
            for (name, kind), value in self.metrics().items()
            if name == "training_anomalies_total" and value > 0
        }

    def state(self) -> set[str]:
        return {
            state
            for (name, state), value in self.metrics().items()
            if name == "training_state" and value == 1
        }

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=20)


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., AbstractContextManager[Demo]]:
    @contextmanager
    def running(*options: str) -> Iterator[Demo]:
        log = tmp_path / "output.txt"
        program = Path(sys.executable).with_name("training-exporter")
        command = [program, "demo", "--port", "0", *options]
        environment = {**os.environ, "COLUMNS": "200", "PYTHONUNBUFFERED": "1"}
        with (
            log.open("wb") as output,
            subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=environment
            ) as process,
        ):
            try:
                yield Demo(process, log)
            finally:
                process.kill()

    return running


def test_each_fault_is_found_and_ctrl_c_ends_the_run(
    start: Callable[..., AbstractContextManager[Demo]],
) -> None:
    """Each by its own kind, on a page that answers while it trains."""
    # The explosion comes when gradients have been at their usual level for a while.
    faults = ("nan@20", "plateau@40", "explosion@245", "slow-data@255")
    options = [option for fault in faults for option in ("--fault", fault)]
    expected = {
        "non_finite",
        "loss_spike",
        "gradient_explosion",
        "learning_rate_anomaly",
        "loss_plateau",
        "throughput_drop",
    }

    with start("--steps", "5000", "--run", "newcomer", "--linger", "60", *options) as demo:
        assert "newcomer" in demo.page("/")
        demo.until(lambda: demo.metrics().get(("training_step", ""), 0) > 255)
        demo.until(lambda: demo.found() >= expected)
        assert demo.state() == {"running"}

        demo.process.send_signal(signal.SIGINT)
        demo.until(lambda: "Serving for another" in demo.output)
        assert demo.state() == {"stopped"}
        assert demo.end(signal.SIGINT) == 0

        assert "Stopped after step" in demo.output
        assert all(demo.output.count(f"fault at step {fault.split('@')[1]}:") for fault in faults)
        assert demo.output.count("▲ non_finite at step 20:") == 1
        assert "non_finite is over, last seen at step 24" in demo.output
        assert "Traceback" not in demo.output


def test_gpus_that_are_none_are_shown_and_said_to_be_none(
    binary: Callable[[str], str], start: Callable[..., AbstractContextManager[Demo]]
) -> None:
    """From the library's answer to the page, by the way of real ones."""
    binary("cc")
    with start("--steps", "5000", "--healthy", "--fake-gpus", "2") as demo:
        demo.until(lambda: "training_gpu_power_watts{" in demo.page("/metrics"))
        page = demo.page("/metrics")
        assert page.count('name="Stand-in GPU (no hardware)"') == 2
        assert page.count("training_gpu_utilization_ratio{") == 2
        assert "2 stand-in GPUs without hardware" in demo.output
        assert demo.end(signal.SIGINT) == 0
        assert "Traceback" not in demo.output


def test_a_crash_is_told_and_is_an_error(
    start: Callable[..., AbstractContextManager[Demo]],
) -> None:
    """On the page for as long as it is served, at the terminal, and in the exit code."""
    with start("--steps", "50", "--fault", "crash@5", "--linger", "60") as demo:
        demo.until(lambda: "Serving for another" in demo.output)
        assert demo.state() == {"crashed"}
        assert demo.end(signal.SIGTERM) == 1

        assert "Crashed in step 5 with IndexError: index out of range" in demo.output
        assert "Traceback" not in demo.output


def test_a_step_that_hangs_can_be_interrupted(
    start: Callable[..., AbstractContextManager[Demo]],
) -> None:
    """The step number stands still, the page answers, and SIGTERM ends it at once."""
    with start("--steps", "50", "--fault", "stall@5") as demo:
        demo.until(lambda: "fault at step 5" in demo.output)
        time.sleep(1)
        assert demo.metrics()["training_step", ""] == 4
        assert demo.state() == {"running"}

        assert demo.end(signal.SIGTERM) == 0
        assert "Stopped after step 4" in demo.output


def test_sigterm_ends_the_run_and_the_process(
    start: Callable[..., AbstractContextManager[Demo]],
) -> None:
    """With its last words, but nobody wants the page any more."""
    with start("--steps", "5000", "--healthy", "--linger", "600") as demo:
        demo.until(lambda: demo.metrics().get(("training_step", ""), 0) > 2)
        assert demo.end(signal.SIGTERM) == 0

        assert "Stopped after step" in demo.output
        assert "Serving for another" not in demo.output


def test_a_page_that_stays_until_ctrl_c(
    start: Callable[..., AbstractContextManager[Demo]],
) -> None:
    """However long nobody presses it."""
    with start("--steps", "5", "--linger", "inf") as demo:
        demo.until(lambda: "The run is over; its page stays until Ctrl-C." in demo.output)
        assert demo.state() == {"completed"}
        assert demo.end(signal.SIGINT) == 0
        assert "Traceback" not in demo.output


def test_a_short_run_completes(start: Callable[..., AbstractContextManager[Demo]]) -> None:
    """With exit code 0, what was reached, and the line to add to a training of one's own."""
    with start("--steps", "5") as demo:
        assert demo.process.wait(timeout=PATIENCE_SECONDS) == 0

        assert "Completed 5 steps: loss" in demo.output
        assert "callbacks=[PrometheusCallback()]" in demo.output
