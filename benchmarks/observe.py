# SPDX-License-Identifier: Apache-2.0
"""One step through all detectors, beside what people do on each step today.

Goal: at most 15 plain `Gauge.set`, less than a tenth of TensorBoard's six `add_scalar` and of
W&B's offline `log` of six values.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable
from itertools import count
from random import Random
from time import perf_counter

from prometheus_client import CollectorRegistry, Gauge

from benchmarks.report import Runner, print_ratios, repeated, side_by_side
from training_exporter import StepSignals, TrainingExporter
from training_exporter.detectors import build_detectors
from training_exporter.monitor import TrainingMonitor

AT_ONCE = 50
SCALARS = ("loss", "grad_norm", "learning_rate", "epoch", "tokens", "step_seconds")


def healthy_steps(first: int, number: int) -> list[StepSignals]:
    """Steps of a healthy run with every signal present that a run on a CPU has."""
    random = Random(first)
    return [
        StepSignals(
            step, 1.7e9 + step, loss=2 + 8 / step**0.3 + random.gauss(0, 0.05),
            grad_norm=abs(random.gauss(0.6, 0.1)), clip_threshold=1.0,
            learning_rates={"0": 1e-3 / step**0.5, "1": 1e-3 / step**0.5}, skipped=False,
            epoch=step / 1e5, max_steps=10**6, tokens=4096.0, samples=8.0,
            step_seconds=0.25 + random.random() / 100, data_wait_seconds=0.01,
        )
        for step in range(first, first + number)
    ]  # fmt: skip


def observing(observe: Callable[[StepSignals], object]) -> Runner:
    """Steps that follow on each other from call to call. They are made just before they are used,
    as in a real run: of thousands made at once, most would have left the processor's caches."""
    seen = 0

    def run(calls: int) -> float:
        nonlocal seen
        spent = 0.0
        for _ in range(calls // AT_ONCE):
            signals = healthy_steps(seen + 1, AT_ONCE)
            seen += AT_ONCE
            started = perf_counter()
            for step in signals:
                observe(step)
            spent += perf_counter() - started
        return spent

    return run


def fifteen_gauges() -> Runner:
    registry = CollectorRegistry()
    gauges = [Gauge(f"gauge_{index}", "a gauge", registry=registry) for index in range(15)]

    def set_all() -> None:
        for gauge in gauges:
            gauge.set(1.5)

    return repeated(set_all)


def tensorboard() -> Runner:
    from torch.utils.tensorboard import SummaryWriter

    writer, steps = SummaryWriter(tempfile.mkdtemp()), count()

    def log() -> None:
        step = next(steps)
        for name in SCALARS:
            writer.add_scalar(name, 1.5, step)

    return repeated(log)


def wandb_offline() -> Runner:
    os.environ["WANDB_SILENT"] = "true"
    import wandb

    logging.getLogger("wandb").setLevel(logging.ERROR)
    run = wandb.init(mode="offline", dir=tempfile.mkdtemp(), project="benchmark")
    values = dict.fromkeys(SCALARS, 1.5)
    return repeated(lambda: run.log(values))


def monitor(profile: str) -> Runner:
    """The monitor alone: detectors, averages, totals, snapshot."""
    return observing(TrainingMonitor(build_detectors(profile)).observe)


def exporter(profile: str) -> Runner:
    """The monitor within the exporter, which guards it and takes its time."""
    return observing(TrainingExporter(serve=False, profile=profile).observe)


def main(arguments: list[str]) -> None:
    quick = {
        "15 plain Gauge.set": fifteen_gauges(),
        "TrainingMonitor.observe(), robust": monitor("robust"),
        "TrainingMonitor.observe(), textbook": monitor("textbook"),
        "TrainingExporter.observe(), robust": exporter("robust"),
    }
    print_ratios(side_by_side(quick, rounds=50), "15 plain Gauge.set")
    print()
    trackers = {
        "TrainingExporter.observe(), robust": exporter("robust"),
        "TensorBoard, six add_scalar": tensorboard(),
        "W&B offline, log of six values": wandb_offline(),
    }
    print_ratios(side_by_side(trackers, calls=500), "TrainingExporter.observe(), robust")
