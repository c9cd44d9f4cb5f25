# SPDX-License-Identifier: Apache-2.0
"""A scrape of a page with 2,000 series over HTTP, and what it does to a busy training thread.

Goal: under 10 ms a scrape. The stall is the longest time the training thread, which does nothing
but Python, was held up while scrapes went on, beside the same without scrapes.
"""

from __future__ import annotations

import http.client
import threading
from statistics import median
from time import perf_counter, sleep

from prometheus_client import CollectorRegistry, generate_latest

from training_exporter import StepSignals, TrainingExporter
from training_exporter.signals import Evaluation

SERIES = 2000
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
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    started = perf_counter()
    connection.request("GET", "/metrics", headers={"Accept": accept})
    connection.getresponse().read()
    seconds = perf_counter() - started
    connection.close()
    return seconds


def spaced_scrape(port: int, accept: str) -> float:
    """A scrape after a pause, since the server slows down who scrapes without one."""
    sleep(0.1)
    return scrape(port, accept)


def longest_gap(seconds: float) -> float:
    """Longest time between two turns of a loop that does nothing but look at the clock."""
    longest, last = 0.0, perf_counter()
    end = last + seconds
    while last < end:
        now = perf_counter()
        longest = max(longest, now - last)
        last = now
    return longest


def stall_while_scraped(port: int, seconds: float = 5.0) -> float:
    stop = threading.Event()

    def scraper() -> None:
        while not stop.is_set():
            scrape(port, ACCEPT["OpenMetrics"])
            sleep(0.05)

    thread = threading.Thread(target=scraper)
    thread.start()
    longest = longest_gap(seconds)
    stop.set()
    thread.join()
    return longest


def main(arguments: list[str]) -> None:
    exporter = exporter_with_many_series()
    assert exporter.port is not None
    print(f"{count_series(exporter.registry)} series")
    for name, accept in ACCEPT.items():
        times = sorted(spaced_scrape(exporter.port, accept) for _ in range(50))
        print_milliseconds(f"scrape, {name}, median of 50", median(times))
        print_milliseconds(f"scrape, {name}, worst of 50", times[-1])
    library = [_library_seconds(exporter.registry) for _ in range(50)]
    print_milliseconds("prometheus_client's rendering alone, median", median(library))
    print_milliseconds("longest stall of a busy thread, no scrape", longest_gap(5.0))
    stall = stall_while_scraped(exporter.port)
    print_milliseconds("longest stall, 20 scrapes a second", stall)
    exporter.close()


def _library_seconds(registry: CollectorRegistry) -> float:
    started = perf_counter()
    generate_latest(registry)
    return perf_counter() - started


def print_milliseconds(what: str, seconds: float) -> None:
    print(f"{what:48} {seconds * 1e3:8.2f} ms")
