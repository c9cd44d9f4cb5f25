# SPDX-License-Identifier: Apache-2.0
"""What a sink costs the step. Goal: less than 2 us, which is putting the step into its queue.

First that alone, then the whole `observe` in a run of 500 steps a second, with the sink's thread
at work: the median says what the queue costs, the 99th percentile who holds Python's lock.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from threading import Event
from time import perf_counter, sleep

from benchmarks.observe import observing
from benchmarks.report import Runner, often, print_ratios, side_by_side
from training_exporter import StepSignals, TrainingExporter
from training_exporter.detectors import robust_detectors
from training_exporter.monitor import TrainingMonitor
from training_exporter.sinks import Point, RunInfo, Sink
from training_exporter.sinks.webhook import WebhookSink
from training_exporter.sinks.worker import Worker

STEPS = often(2500)
STEP_SECONDS = 0.002


class Hanging(Sink):
    """Never comes back from its first steps."""

    def steps(self, points: Iterable[Point]) -> None:
        Event().wait()


def put() -> Runner:
    """The queue alone."""
    worker = Worker(
        Sink(), lambda: RunInfo("run", 0, {}), TrainingMonitor(robust_detectors()), lambda: None
    )
    run = observing(worker.step)

    def emptied(calls: int) -> float:
        seconds = run(calls)
        worker._waiting.clear()
        return seconds

    return emptied


def tensorboard(folder: Path) -> Sink:
    from training_exporter.sinks.tensorboard import TensorBoardSink

    return TensorBoardSink(folder)


def wandb(folder: Path) -> Sink:
    from training_exporter.sinks.wandb import WandbSink

    os.environ.update(WANDB_MODE="offline", WANDB_SILENT="true")
    return WandbSink(init={"dir": folder})


SINKS: dict[str, Callable[[Path], list[Sink]]] = {
    "none": lambda folder: [],
    "a webhook": lambda folder: [WebhookSink("http://127.0.0.1:9/", pause=lambda seconds: None)],
    "one that hangs": lambda folder: [Hanging()],
    "TensorBoard": lambda folder: [tensorboard(folder)],
    "W&B, offline": lambda folder: [wandb(folder)],
}


def paced(sinks: list[Sink]) -> tuple[float, float]:
    """Median and 99th percentile of a step's `observe`, in seconds."""
    exporter = TrainingExporter(serve=False, sinks=sinks)
    times = []
    for step in range(1, STEPS + 1):
        signals = StepSignals(
            step, 1.7e9 + step, loss=2.0, grad_norm=1.0, learning_rates={"0": 1e-3}, tokens=100,
            samples=2, step_seconds=STEP_SECONDS,
        )  # fmt: skip
        started = perf_counter()
        exporter.observe(signals)
        times.append(perf_counter() - started)
        sleep(STEP_SECONDS)
    exporter.finish()
    times = sorted(times[STEPS // 5 :])  # the first ones start threads and open files
    return times[len(times) // 2], times[len(times) * 99 // 100]


def main(_: list[str]) -> None:
    logging.getLogger("training_exporter").setLevel(logging.ERROR)  # summaries are no result
    without = "observe(), no sink"
    candidates = {without: observing(TrainingExporter(serve=False).observe), "put": put()}
    print_ratios(side_by_side(candidates), without)
    print(f"\n{'observe() with this sink':32} {'median':>12} {'99th':>12}")
    with tempfile.TemporaryDirectory() as folder:
        for name, sinks in SINKS.items():
            middle, late = paced(sinks(Path(folder)))
            print(f"{name:32} {middle * 1e6:9.1f} us {late * 1e6:9.1f} us", flush=True)


if __name__ == "__main__":
    main([])
