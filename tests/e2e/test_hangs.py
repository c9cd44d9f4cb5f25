# SPDX-License-Identifier: Apache-2.0
"""Training threads that stand still, each in its way, and whether the page still answers."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.request import urlopen

import pytest

pytestmark = pytest.mark.e2e

HELD_SECONDS = 4
TRAIN = f"""
import ctypes, queue, time
from training_exporter import StepSignals, TrainingExporter

def begin():
    long_ago = time.time() - 125  # so that nobody has to wait for it
    exporter = TrainingExporter(
        run="r", port=0, address="127.0.0.1", debug_stack=True, clock=lambda: long_ago
    ).start()
    exporter.set_state("running")
    exporter.observe(StepSignals(1, long_ago, 1.0))
    print(exporter.port, flush=True)
    return exporter

class Loader:
    def __iter__(self):
        while True:
            yield queue.Queue().get()

def in_the_data_loader():
    exporter = begin()
    for batch in exporter.data(Loader()):
        pass

def in_c():
    exporter = begin()
    ctypes.CDLL(None).sleep(3600)

def in_c_with_the_lock():
    exporter = begin()
    ctypes.PyDLL(None).sleep({HELD_SECONDS})
    time.sleep(3600)
"""


@contextmanager
def training(how: str) -> Iterator[str]:
    """A process that has trained a step and stands still; gives the address of its page."""
    process = subprocess.Popen(
        [sys.executable, "-c", f"{TRAIN}\n{how}()"], stdout=subprocess.PIPE, text=True
    )
    with process:
        try:
            assert process.stdout
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.kill()


def page(url: str, *, patience: float = 30) -> str:
    with urlopen(url, timeout=patience) as answer:
        return str(answer.read().decode())


@pytest.mark.parametrize(
    ("how", "where"),
    [("in_the_data_loader", ["queue.py:", "get</code>", "__iter__"]), ("in_c", [" in_c</code>"])],
)
def test_the_page_answers_and_says_where_it_stands(how: str, where: list[str]) -> None:
    """In a loader that gives nothing, and in a call that has let go of the interpreter's lock."""
    deadline = time.monotonic() + 30
    with training(how) as url:
        # On a busy machine it takes a moment from saying the address to standing still.
        while any(each not in page(url) for each in where) and time.monotonic() < deadline:
            time.sleep(0.05)
        text, metrics, stack = page(url), page(f"{url}/metrics"), page(f"{url}/debug/stack")

    assert "No progress for 2" in text
    assert [each for each in where if each not in text] == []
    assert 'training_last_progress_timestamp_seconds{rank="0",run="r"}' in metrics
    assert f", in {how}\n" in stack
    assert "MainThread" in stack
    assert "(trains)" in stack
    assert "training-exporter-http" in stack


def test_a_call_that_keeps_the_lock_stops_the_page_too() -> None:
    """Nobody in the process can answer then, which looks like a process that is gone. Afterwards
    all is as before."""
    with training("in_c_with_the_lock") as url:
        time.sleep(1.0)
        with pytest.raises(TimeoutError):
            page(f"{url}/metrics", patience=1.5)

        assert "training_step{" in page(f"{url}/metrics")
