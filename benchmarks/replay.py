# SPDX-License-Identifier: Apache-2.0
"""How many rows a second a replay judges, and what memory a long log takes.

Goal: over 100,000 rows a second through all detectors of a profile on one core. The time is the
processor's, so that what else runs on the machine counts less.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from time import process_time

from training_exporter.replay.playing import Plan, Playback

ROWS = 200_000
LONG = 1_000_000
NAMES = ("step", "loss", "grad_norm", "learning_rate")
LOG_MEMORY = "--memory"


def write_csv(path: Path, rows: int) -> None:
    _write(path, rows, ",".join(NAMES) + "\n", lambda values: ",".join(map(str, values)))


def write_json_lines(path: Path, rows: int) -> None:
    _write(path, rows, "", lambda values: json.dumps(dict(zip(NAMES, values, strict=True))))


def _write(path: Path, rows: int, header: str, line: Callable[[list[float]], str]) -> None:
    random = Random(0)
    with path.open("w", encoding="utf-8") as file:
        file.write(header)
        for step in range(1, rows + 1):
            loss = round(2 + 8 / step**0.3 + random.gauss(0, 0.05), 5)
            norm = round(abs(random.gauss(0.6, 0.1)), 5)
            file.write(line([step, loss, norm, 1e-3 / step**0.5]) + "\n")


def measure(name: str, rows: int, replay: Callable[[], object]) -> None:
    started = process_time()
    replay()
    seconds = process_time() - started
    print(f"{name:32} {seconds / rows * 1e6:8.2f} us a row  {rows / seconds:10,.0f} rows/s")


def peak_bytes(path: Path) -> int:
    """Most memory that a process takes which replays a log."""
    command = [sys.executable, "-m", "benchmarks.replay", LOG_MEMORY, str(path)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main(arguments: list[str]) -> None:
    if arguments[:1] == [LOG_MEMORY]:
        Playback(Path(arguments[1]), Plan()).play()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        return
    with TemporaryDirectory() as folder:
        for name, write in (("CSV", write_csv), ("JSON lines", write_json_lines)):
            log = Path(folder) / name
            write(log, ROWS)
            measure(f"{name}, read alone", ROWS, lambda log=log: _read(log))  # type: ignore[misc]
            for profile in ("robust", "textbook"):
                plan = Plan(profiles=(profile,))
                measure(f"{name}, {profile}", ROWS, lambda log=log, plan=plan: _play(log, plan))  # type: ignore[misc]
        short, long = Path(folder) / "short", Path(folder) / "long"
        write_csv(short, 10_000)
        write_csv(long, LONG)
        print(f"peak memory, {10_000:9,} rows: {peak_bytes(short) / 1e6:.1f} MB")
        print(f"peak memory, {LONG:9,} rows: {peak_bytes(long) / 1e6:.1f} MB")


def _read(log: Path) -> None:
    deque(Playback(log, Plan()).events(), maxlen=0)


def _play(log: Path, plan: Plan) -> None:
    Playback(log, plan).play()


if __name__ == "__main__":
    main(sys.argv[1:])
