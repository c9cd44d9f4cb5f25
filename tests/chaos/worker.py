# SPDX-License-Identifier: Apache-2.0
"""A small training loop that ends in some way, as soon as it is told.

    python worker.py RUN ENDING SEED DIARY

It is told by a byte on its standard input. In its diary is one line for each step that it is about
to report, and one at the end with the exporter's threads that were left, where it came so far.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import NoReturn

from training_exporter import StepSignals, TrainingExporter

PLANNED = 10**6


class Worker:
    """A run.

    Args:
        run: its name.
        ending: one of ENDINGS, or a signal that comes from outside.
        seed: of its losses.
        diary: its file.
    """

    def __init__(self, run: str, ending: str, seed: str, diary: Path) -> None:
        self.exporter = TrainingExporter(run=run)
        self.ending = ending
        self.random = Random(seed)
        self.diary = os.open(diary, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.told = threading.Event()

    def train(self) -> None:
        with self.exporter:
            for step in self.steps():
                loss = 2.0 + self.random.random()
                if self.random.random() < 0.02:
                    loss = float("nan")
                took = self.random.uniform(0.01, 0.05)
                time.sleep(took)
                self.write(f"{step} {loss != loss:d}")
                self.exporter.observe(
                    StepSignals(
                        step, time.time(), loss, tokens=64, max_steps=PLANNED, step_seconds=took
                    )
                )
        self.exporter.close(linger=True)
        left = [t.name for t in threading.enumerate() if t.name.startswith("training-exporter")]
        self.write(f"left {' '.join(left) or 'nothing'}")

    def steps(self) -> Iterator[int]:
        self.exporter.set_state("running")
        for step in range(1, PLANNED):
            if self.told.is_set() and not self.go_on():
                return
            yield step

    def go_on(self) -> bool:
        """End as planned; False for an end in good order."""
        if self.ending == "exception":
            raise RuntimeError("planted")
        if self.ending == "sys.exit":
            sys.exit(3)
        if self.ending == "os._exit":
            os._exit(9)
        if self.ending == "hang":
            threading.Event().wait()
        return self.ending != "completed"

    def write(self, line: str) -> None:
        os.write(self.diary, f"{line}\n".encode())

    def listen(self) -> None:
        if os.read(0, 1):
            self.told.set()


def main() -> None:
    run, ending, seed, diary = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started it may ignore it
    worker = Worker(run, ending, seed, Path(diary))
    threading.Thread(target=worker.listen, daemon=True).start()
    worker.train()


def pace() -> NoReturn:
    """Steps of some milliseconds for some seconds, with or without an exporter; prints how many
    there were in a second of processor time."""
    with_exporter, seconds = sys.argv[2] == "with", float(sys.argv[3])
    exporter = TrainingExporter(run="pace", serve=with_exporter)
    if with_exporter:
        exporter.start().set_state("running")
    steps, began, until = 0, time.process_time(), time.monotonic() + seconds
    while time.monotonic() < until:
        loss = sum([index * 0.5 for index in range(60_000)])
        steps += 1
        if with_exporter:
            exporter.observe(StepSignals(steps, time.time(), loss, max_steps=PLANNED))
    print(steps / (time.process_time() - began))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    pace() if sys.argv[1] == "pace" else main()
