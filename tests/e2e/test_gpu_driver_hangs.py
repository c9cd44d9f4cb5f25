# SPDX-License-Identifier: Apache-2.0
"""Whole processes with a GPU driver that hangs, is missing or is broken.

The driver is the stand-in library, found by the dynamic linker as the real one is.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from urllib.request import urlopen

import pytest

from tests.unit.gpu.stand_in import stand_in_library
from training_exporter.demo import stand_in_nvml
from training_exporter.demo.stand_in_nvml import Control
from training_exporter.gpu.calls import STALL_SECONDS

__all__ = ["stand_in_library"]
pytestmark = pytest.mark.e2e

TRAIN = """
import sys, threading, time
from training_exporter import TrainingExporter

def until_a_line_comes(seen):
    seen.append(sys.stdin.readline())

exporter = TrainingExporter(port=0, address="127.0.0.1", gpus="all", gpu_interval=0.5).start()
print(exporter.port, flush=True)
line = []
threading.Thread(target=until_a_line_comes, args=(line,), daemon=True).start()
while not line:
    exporter.step(loss=1.0)
    time.sleep(0.01)
if line[0] == "close\\n":
    started = time.perf_counter()
    exporter.close()
    print(time.perf_counter() - started, flush=True)
"""


class Run:
    """A training process, its page, and how it ends."""

    def __init__(self, process: subprocess.Popen[str], errors: Path) -> None:
        self._process = process
        self._errors = errors
        self.port = int(self._out.readline())

    @property
    def _out(self) -> IO[str]:
        assert self._process.stdout is not None
        return self._process.stdout

    def page(self) -> tuple[str, float]:
        """The metrics page, and the seconds that it took."""
        started = time.perf_counter()
        with urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=30) as answer:
            return answer.read().decode(), time.perf_counter() - started

    def wait_for(self, pattern: str, seconds: float = 30) -> str:
        """The first page on which a line matches."""
        until = time.monotonic() + seconds
        while True:
            page, _ = self.page()
            if re.search(pattern, page, flags=re.MULTILINE):
                return page
            assert time.monotonic() < until, page
            time.sleep(0.1)

    def end(self, how: str = "end") -> tuple[str, float, str]:
        """Let it end: what it printed, the seconds it took, and what it logged."""
        started = time.perf_counter()
        out, _ = self._process.communicate(f"{how}\n", timeout=60)
        seconds = time.perf_counter() - started
        assert self._process.returncode == 0
        return out, seconds, self._errors.read_text()


@contextmanager
def training(folder: Path, errors: Path, environ: Mapping[str, str]) -> Iterator[Run]:
    with (
        errors.open("w") as log,
        subprocess.Popen(
            [sys.executable, "-c", TRAIN], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
            env={**os.environ, "LD_LIBRARY_PATH": str(folder), **environ},
        ) as process,
    ):  # fmt: skip
        try:
            yield Run(process, errors)
        finally:
            process.kill()


@pytest.fixture
def control(stand_in_library: Path, tmp_path: Path) -> Iterator[Control]:
    control = Control.create(tmp_path / "control", stand_in_nvml.load(stand_in_library))
    yield control
    control.release()


@pytest.fixture
def run(stand_in_library: Path, control: Control, tmp_path: Path) -> Iterator[Run]:
    """A training with two GPUs that are read."""
    environ = {stand_in_nvml.VARIABLE: str(control.path)}
    with training(stand_in_library.parent, tmp_path / "errors", environ) as run:
        run.wait_for(r'^training_gpu_power_watts\{gpu="1".*\} 200')
        yield run


def value(page: str, metric: str) -> float:
    found = re.search(rf"^{metric}\{{[^}}]*\}} (\S+)$", page, flags=re.MULTILINE)
    assert found, metric
    return float(found[1])


def hang(run: Run, control: Control) -> str:
    """Every call hangs from now on; returns the page that says so."""
    control.hang()
    return run.wait_for(r"^training_gpu_driver_stalled\{.*\} 1", STALL_SECONDS + 10)


@pytest.mark.alone
def test_a_driver_that_hangs_hurts_nobody(run: Run, control: Control) -> None:
    """No old value is shown, scrapes are as quick as ever, steps go on, and it comes back."""
    before = [run.page()[1] for _ in range(20)]
    stalled = hang(run, control)
    during = [run.page() for _ in range(20)]

    assert "training_gpu_power_watts{" not in stalled
    assert 'training_gpu_failures_total{rank="0",reason="driver_stalled",run="training"} 1' in (
        re.sub(r"\{(reason=\"\w+\"),(rank=\"0\"),", r"{\2,\1,", stalled)
    )
    assert sorted(seconds for _, seconds in during)[10] < 2 * sorted(before)[10] + 0.05
    assert value(during[-1][0], "training_step") > value(stalled, "training_step")
    control.release()
    page = run.wait_for(r"^training_gpu_power_watts")
    assert value(page, "training_gpu_driver_stalled") == 0
    log = run.end()[2]
    assert log.count("does not answer") == 1
    assert log.count("answers again") == 1


@pytest.mark.alone
@pytest.mark.parametrize("how", ["end", "close"])
def test_a_driver_that_hangs_does_not_hold_the_process(
    stand_in_library: Path, run: Run, control: Control, tmp_path: Path, how: str
) -> None:
    """Neither its end nor `close`; a process with a driver that answers takes as long."""
    hang(run, control)
    out, seconds, _ = run.end(how)
    control.release()
    environ = {stand_in_nvml.VARIABLE: str(control.path)}
    with training(stand_in_library.parent, tmp_path / "other", environ) as healthy:
        healthy.wait_for(r"^training_gpu_power_watts")
        _, usual, _ = healthy.end(how)

    assert seconds < usual + 0.5
    if how == "close":
        assert float(out) < 0.3


def test_an_environment_variable_turns_it_off(
    stand_in_library: Path, control: Control, tmp_path: Path
) -> None:
    """The driver is then not even loaded."""
    environ = {
        stand_in_nvml.VARIABLE: str(control.path), "TRAINING_EXPORTER_GPU_METRICS": "false",
    }  # fmt: skip
    with training(stand_in_library.parent, tmp_path / "errors", environ) as run:
        page = run.wait_for(r"^training_step\{.*\} 100\b|^training_step\{.*\} [1-9]\d\d")
        run.end()

    assert "training_gpu_" not in re.sub(r"^#.*\n", "", page, flags=re.MULTILINE)
    assert control.calls("nvmlInitWithFlags") == 0


def test_without_a_driver_there_is_no_noise(tmp_path: Path) -> None:
    """As on any machine without GPUs of NVIDIA: no line in the log, no series."""
    (tmp_path / stand_in_nvml.SONAME).write_text("no library")
    with training(tmp_path, tmp_path / "errors", {}) as run:
        page = run.wait_for(r"^training_step\{.*\} [1-9]\d\d")
        _, _, log = run.end()

    assert "training_gpu_" not in re.sub(r"^#.*\n", "", page, flags=re.MULTILINE)
    assert not re.search("nvidia|nvml|gpu|driver", log, flags=re.IGNORECASE)
