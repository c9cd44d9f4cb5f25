# SPDX-License-Identifier: Apache-2.0
"""Real processes that end in each way there is, and what their black boxes know of it."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from urllib.request import urlopen

import pytest

from training_exporter import catalog
from training_exporter.lifecycle.blackbox_reader import Box, read_box

LOOP = """
import os, signal, sys
from itertools import count
from training_exporter import TrainingExporter

signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started this may ignore it
last = int(sys.argv[1])
with TrainingExporter(run="r", port=0, gpu_metrics=False, forensics=False, linger=0) as exporter:
    print("port", exporter.port, flush=True)
    for step in count(1) if last == 0 else range(1, last + 1):
        if step % 10 == 0:
            with exporter.saving():
                pass
        exporter.step(
            loss=float("nan") if step % 50 < 5 else 1.0, grad_norm=step % 3, clip_threshold=1.0,
            tokens=100, samples=2, step=step, data_wait_seconds=1e-4 * (step % 7),
        )
        print("step", step, flush=True)
    assert "torch" not in sys.modules
    exec(sys.argv[2])
"""


class Training:
    """A process that trains, without torch.

    Args:
        steps: how many; 0 is until it is killed.
        end: what it does then.
    """

    def __init__(self, folder: Path, steps: int = 0, end: str = "") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", LOOP, str(steps), end],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, bufsize=1,
            env={**os.environ, "TRAINING_EXPORTER_BLACKBOX_DIR": str(folder)},
        )  # fmt: skip
        assert self.process.stdout is not None
        self._lines = self.process.stdout
        self.port = int(next(self._lines).split()[1])

    def until(self, step: int) -> None:
        """Wait until it has reported a step."""
        while self.next_step() < step:
            pass

    def next_step(self) -> int:
        return int(next(self._lines).split()[1])

    def counters(self) -> dict[str, float]:
        """All counters on its page that go on."""
        with urlopen(f"http://localhost:{self.port}/metrics") as page:
            text = page.read().decode()
        samples = re.findall(r"^(training_\S+(?:_total|_bucket|_sum|_count)\S*) (\S+)$", text, re.M)
        return {name: float(value) for name, value in samples if is_continued(name)}

    def rest(self) -> list[int]:
        """Steps that it has reported and nobody has read, until its end."""
        return [int(line.split()[1]) for line in self._lines if line.endswith("\n")]


def is_continued(sample: str) -> bool:
    """Those of the exporter itself, of GPUs and of forward passes begin anew in each process."""
    return not re.match("training_(exporter|gpu|cuda|forward|layer|gradient)_", sample)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Training]]:
    """Starts processes, and ends them with the test."""
    started: list[Training] = []

    def one(steps: int = 0, end: str = "") -> Training:
        started.append(Training(tmp_path, steps, end))
        return started[-1]

    yield one
    for training in started:
        training.process.kill()
        training.process.communicate()


def box(folder: Path) -> Box:
    return read_box(folder / "r-r0.blackbox")


def test_a_run_that_is_killed_again_and_again_loses_no_count(
    tmp_path: Path, start: Callable[..., Training]
) -> None:
    """Each process shows at once at least what the last page of the one before it has shown."""
    random = Random(0)
    seen: dict[str, float] = {}
    for number in range(5):
        training = start()
        at_start = training.counters()
        assert {name: value for name, value in at_start.items() if value < seen.get(name, 0)} == {}
        training.until(random.randrange(1, 300))
        seen = training.counters()
        training.process.send_signal(signal.SIGKILL)
        reported = training.rest()

        found = box(tmp_path)
        assert found.state in (catalog.RUNNING, catalog.SAVING)
        assert found.lives is False
        steps = [step.step for step in found.steps]
        assert steps == list(range(steps[0], steps[-1] + 1))
        assert set(reported[-200:]) - set(steps) <= set(range(steps[0]))
        assert found.step >= max(reported, default=0)
        assert found.counters.restarts == number

    assert seen['training_non_finite_steps_total{rank="0",run="r",signal="loss"}'] > 0


@pytest.mark.parametrize(
    ("end", "state", "failure"),
    [
        ("", catalog.COMPLETED, None),
        ("sys.exit(3)", catalog.STOPPED, None),
        ("raise KeyboardInterrupt", catalog.STOPPED, None),
        ("1 / 0", catalog.CRASHED, "ZeroDivisionError"),
        ("os._exit(1)", catalog.RUNNING, None),
        ("os.kill(os.getpid(), signal.SIGTERM)", catalog.RUNNING, None),
    ],
)
def test_the_end_of_a_process_is_in_the_box(
    tmp_path: Path, start: Callable[..., Training], end: str, state: str, failure: str | None
) -> None:
    """Where nobody could say so, it is the state in which it was last."""
    training = start(20, end)
    training.rest()
    training.process.wait()

    found = box(tmp_path)

    assert (found.state, found.failure, found.step) == (state, failure, 20)
    assert (found.lives, found.pid) == (False, training.process.pid)


def test_a_lock_that_is_late_keeps_no_process_alive(
    tmp_path: Path, start: Callable[..., Training]
) -> None:
    """A file system may give it back some time after the end; the process is known to be gone."""
    training = start()
    training.until(5)
    before = box(tmp_path).lives
    training.process.kill()
    training.process.wait()
    with (tmp_path / "r-r0.blackbox").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        after = box(tmp_path).lives

    assert (before, after) == (True, False)


@pytest.mark.parametrize("start", [".start()", ""])
@pytest.mark.parametrize(("end", "state"), [("", catalog.COMPLETED), ("1 / 0", catalog.CRASHED)])
def test_a_run_that_nobody_concludes_is_concluded_by_the_end_of_its_process(
    tmp_path: Path, end: str, state: str, start: str
) -> None:
    """Also where it serves no page, and was never told to."""
    script = f"""
from training_exporter import TrainingExporter

exporter = TrainingExporter(run="r", serve=False, gpu_metrics=False){start}
for step in range(3):
    exporter.step(loss=1.0, max_steps=3)
{end}
"""
    subprocess.run(
        [sys.executable, "-c", script], check=False, stderr=subprocess.DEVNULL,
        env={**os.environ, "TRAINING_EXPORTER_BLACKBOX_DIR": str(tmp_path)},
    )  # fmt: skip

    assert box(tmp_path).state == state
