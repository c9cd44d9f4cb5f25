# SPDX-License-Identifier: Apache-2.0
"""A scrape of a page with 2,000 series over HTTP, and what it does to a busy training thread.

Goal: under 10 ms a scrape. The stall is the longest time the training thread, which does nothing
but Python, was held up while scrapes went on, beside the same without scrapes.
"""

from __future__ import annotations

import http.client
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from time import perf_counter, sleep
from typing import IO

from prometheus_client import CollectorRegistry, generate_latest

from benchmarks.report import QUICK, often
from training_exporter import StepSignals, TrainingExporter
from training_exporter.signals import Evaluation

SERIES = 2000
SCRAPES = often(50)
STALL_SECONDS = 0.5 if QUICK else 5.0
ACCEPT = {
    "classic text": "text/plain; version=0.0.4",
    "OpenMetrics": "application/openmetrics-text; version=1.0.0",
}


def exporter_with_many_series() -> TrainingExporter:
    """A page of SERIES series or a few more, most of them evaluation results by name."""
    exporter = TrainingExporter(port=0, address="127.0.0.1", max_logged_values=SERIES)
    exporter.observe(StepSignals(1, 0.0, loss=2.0, grad_norm=1.0, step_seconds=0.2))
    missing = SERIES - count_series(exporter.registry)
    metrics = {f"eval metric {index}": index * 1.1 for index in range(missing)}
    exporter.monitor.observe_evaluation(Evaluation(1, 0.0, "eval", None, metrics))
    return exporter.start()


def count_series(registry: CollectorRegistry) -> int:
    return sum(len(family.samples) for family in registry.collect())


def scrape(port: int, accept: str) -> float:
    """Seconds that one scrape takes."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    started = perf_counter()
    connection.request("GET", "/metrics", headers={"Accept": accept})
    connection.getresponse().read()
    seconds = perf_counter() - started
    connection.close()
    return seconds


def scrape_for_ever(port: int, accept: str, interval: float) -> None:
    """The part of Prometheus, in a process of its own: prints the seconds of each scrape."""
    while True:
        print(scrape(port, accept), flush=True)
        sleep(interval)


@contextmanager
def scraper(port: int, accept: str, interval: float) -> Iterator[IO[str]]:
    """A process that scrapes, and its output."""
    command = [sys.executable, "-m", "benchmarks.scrape", str(port), accept, str(interval)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()  # the first scrape warms up both sides
        try:
            yield process.stdout
        finally:
            process.kill()


def longest_gap(seconds: float) -> float:
    """Longest time between two turns of a loop that does nothing but look at the clock."""
    longest, last = 0.0, perf_counter()
    end = last + seconds
    while last < end:
        now = perf_counter()
        longest = max(longest, now - last)
        last = now
    return longest


def main(arguments: list[str]) -> None:
    exporter = exporter_with_many_series()
    assert exporter.port is not None
    print(f"{count_series(exporter.registry)} series")
    for name, accept in ACCEPT.items():
        with scraper(exporter.port, accept, interval=0.1) as output:
            times = sorted(float(output.readline()) for _ in range(SCRAPES))
        print_milliseconds(f"scrape, {name}, median of {SCRAPES}", median(times))
        print_milliseconds(f"scrape, {name}, worst of {SCRAPES}", times[-1])
    library = [_library_seconds(exporter.registry) for _ in range(SCRAPES)]
    print_milliseconds("prometheus_client's rendering alone, median", median(library))
    print_milliseconds("longest stall of a busy thread, no scrape", longest_gap(STALL_SECONDS))
    with scraper(exporter.port, ACCEPT["OpenMetrics"], interval=0.2):
        print_milliseconds("longest stall, five scrapes a second", longest_gap(STALL_SECONDS))
    exporter.close()


def _library_seconds(registry: CollectorRegistry) -> float:
    started = perf_counter()
    generate_latest(registry)
    return perf_counter() - started


def print_milliseconds(what: str, seconds: float) -> None:
    print(f"{what:48} {seconds * 1e3:8.2f} ms")


if __name__ == "__main__":
    scrape_for_ever(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]))
