# SPDX-License-Identifier: Apache-2.0
"""Processes that end, each in its way, before the eyes of a scraper."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest

pytestmark = pytest.mark.e2e

INTERVAL = 0.5
TRAIN = """
import os, signal, sys, time
from training_exporter import TrainingExporter
from training_exporter.signals import StepSignals

signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started this may ignore it

def steps(exporter, number=4):
    for step in range(1, number + 1):
        exporter.set_state("running")
        exporter.observe(StepSignals(step, time.time(), 1.0, max_steps=4))

def announce(exporter):
    print(exporter.port, flush=True)
    until_told()

def until_told():
    while not os.path.exists("go"):
        time.sleep(0.02)

def in_a_fork():
    import multiprocessing
    child = multiprocessing.get_context("fork").Process(target=without_a_block)
    child.start()
    child.join()

def in_a_block(fail=lambda: None):
    with TrainingExporter(port=0, run="r") as exporter:
        steps(exporter)
        announce(exporter)
        fail()

def without_a_block(number=4, fail=lambda: None):
    exporter = TrainingExporter(port=0, run="r").start()
    steps(exporter, number)
    announce(exporter)
    fail()
"""
ENDS = {
    "in_a_block()": ("completed", 0),
    "in_a_fork()": ("completed", 0),
    "in_a_block(lambda: 1 / 0)": ("crashed", 1),
    "in_a_block(lambda: sys.exit(3))": ("stopped", 3),
    "in_a_block(lambda: os.kill(os.getpid(), signal.SIGINT))": ("stopped", -signal.SIGINT),
    "without_a_block()": ("completed", 0),
    "without_a_block(2)": ("stopped", 0),
    "without_a_block(fail=lambda: 1 / 0)": ("crashed", 1),
    "without_a_block(fail=lambda: os.kill(os.getpid(), signal.SIGINT))": (
        "stopped",
        -signal.SIGINT,
    ),
}
"""How a process ends, the state its page then shows, and its exit code."""


def start(end: str, tmp_path: Path, **environment: str) -> tuple[subprocess.Popen[str], str]:
    """A process that trains, and the address of its page."""
    process = subprocess.Popen(
        [sys.executable, "-c", TRAIN + end],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    assert process.stdout
    return process, f"http://127.0.0.1:{process.stdout.readline().strip()}/metrics"


def scrape_page(url: str) -> str:
    request = Request(url, headers={"X-Prometheus-Scrape-Timeout-Seconds": "10"})
    with urlopen(request, timeout=5) as answer:
        return str(answer.read().decode())


def scrape(url: str) -> str:
    """The state that the page shows."""
    page = scrape_page(url)
    states = [line for line in page.splitlines() if line.startswith("training_state")]
    return next(line.split('state="')[1].split('"')[0] for line in states if line.endswith(" 1.0"))


def go_on(folder: Path) -> None:
    (folder / "go").touch()


@pytest.mark.parametrize("end", ENDS)
def test_the_last_scrape_sees_how_it_ended(end: str, tmp_path: Path) -> None:
    """And the process goes as soon as that is so."""
    process, url = start(end, tmp_path)
    with process:
        scrape(url)
        time.sleep(INTERVAL)
        scrape(url)
        go_on(tmp_path)
        time.sleep(INTERVAL)
        seen, gone = [], time.monotonic() + 10
        while process.poll() is None and time.monotonic() < gone:
            with suppress(URLError, ConnectionError):
                seen.append(scrape(url))
            time.sleep(INTERVAL)

    assert (seen[-1], process.returncode) == ENDS[end]
    assert len(seen) <= 2


@pytest.mark.alone
@pytest.mark.parametrize(
    ("environment", "scraped"), [({"TRAINING_EXPORTER_LINGER": "0"}, True), ({}, False)]
)
def test_no_wait_where_none_is_wanted_or_nobody_comes(
    environment: dict[str, str], scraped: bool, tmp_path: Path
) -> None:
    """A page that only a person with a browser looked at holds nobody up."""
    process, url = start("in_a_block()", tmp_path, **environment)
    with process:
        if scraped:
            scrape(url)
        else:
            urlopen(url, timeout=5).close()
        began = time.monotonic()
        go_on(tmp_path)
        process.wait(10)

    assert time.monotonic() - began < 1.5


@pytest.mark.alone
def test_a_second_interrupt_leaves_at_once(tmp_path: Path) -> None:
    """Who presses Ctrl-C again has no time, and wants no traceback for it."""
    process, url = start("in_a_block()", tmp_path)
    with process:
        scrape(url)
        go_on(tmp_path)
        time.sleep(1.0)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        began = time.monotonic()

        assert process.wait(10) == 0
    assert time.monotonic() - began < 1.5


RUNS = """
ports = []
for run in ("first", "second"):
    with TrainingExporter(port=ports[0] if ports else 0, port_tries=1, run=run) as exporter:
        steps(exporter)
        ports.append(exporter.port)
        if run == "first":
            announce(exporter)
"""


def test_the_next_run_leaves_the_page_of_the_last_one_until_it_was_seen(tmp_path: Path) -> None:
    """Run after run on one port, as in a notebook or a sweep."""
    process, url = start(RUNS, tmp_path)
    with process:
        scrape(url)
        time.sleep(INTERVAL)
        scrape(url)
        go_on(tmp_path)
        time.sleep(INTERVAL)
        first = scrape_page(url)
        time.sleep(INTERVAL)
        second = scrape_page(url)
        assert process.wait(10) == 0

    assert 'training_state{rank="0",run="first",state="completed"} 1.0' in first
    assert 'training_state{rank="0",run="second",state="completed"} 1.0' in second


@pytest.mark.alone
def test_several_runs_share_one_wait(tmp_path: Path) -> None:
    """The bound is one for the process, and all are concluded before it begins."""
    end = """
several = [TrainingExporter(port=0, run=str(number), linger=2).start() for number in range(4)]
for exporter in several:
    steps(exporter)
    print(exporter.port, flush=True)
until_told()
"""
    process, first = start(end, tmp_path)
    with process:
        assert process.stdout
        ports = [process.stdout.readline().strip() for _ in range(3)]
        for url in (first, *(f"http://127.0.0.1:{port}/metrics" for port in ports)):
            scrape(url)
        began = time.monotonic()
        go_on(tmp_path)
        process.wait(10)

    assert 1.5 < time.monotonic() - began < 3.5


@pytest.mark.alone
def test_multiprocessing_does_not_make_it_wait_twice(tmp_path: Path) -> None:
    """Its own hook at the end of a process runs in the main process as well."""
    end = "import multiprocessing.util\nin_a_block()"
    process, url = start(end, tmp_path, TRAINING_EXPORTER_LINGER="1.5")
    with process:
        scrape(url)
        began = time.monotonic()
        go_on(tmp_path)
        process.wait(10)

    assert 1.0 < time.monotonic() - began < 2.7
