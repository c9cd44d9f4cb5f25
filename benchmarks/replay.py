# SPDX-License-Identifier: Apache-2.0
"""How many rows a second a replay judges, and what memory a long log takes.

Goal: over 100,000 rows a second through all detectors of a profile on one core, whatever the
format. The time is the processor's, so that what else runs on the machine counts less. A short
event file is read by TensorBoard's own class, too.

`python -m benchmarks.replay --gigabytes 2` replays a log of that size in each format, with forty
values a row. That takes many minutes, most of them until the event file is written.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from time import process_time

from benchmarks.report import often
from training_exporter.replay.playing import Plan, Playback

ROWS = often(100_000)
SHORT, LONG = often(10_000), often(1_000_000)
NAMES = ("step", "loss", "grad_norm", "learning_rate", "epoch")
MORE_VALUES = 36
REPLAY_ALONE = "--replay-alone"

Rows = Iterable[Sequence[float]]


def rows(more_values: int = 0) -> Iterator[list[float]]:
    """Step, loss, gradient norm, rate, epoch, and whatever else a log may have; without an end."""
    random = Random(0)
    step = 0
    while True:
        step += 1
        loss = round(2 + 8 / step**0.3 + random.gauss(0, 0.05), 5)
        norm = round(abs(random.gauss(0.6, 0.1)), 5)
        others = [round(loss + number, 5) for number in range(more_values)]
        yield [step, loss, norm, 1e-3 / step**0.5, round(step / 1000, 3), *others]


def _names(row: Sequence[float]) -> list[str]:
    return [*NAMES, *(f"layer_{number}/norm" for number in range(len(row) - len(NAMES)))]


def write_csv(path: Path, rows: Rows) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        for number, row in enumerate(rows):
            if not number:
                writer.writerow(_names(row))
            writer.writerow(row)


def write_json_lines(path: Path, rows: Rows) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(dict(zip(_names(row), row, strict=True))) + "\n")


def write_events(path: Path, rows: Rows) -> None:
    """As a Trainer does: an event for each value, by the writer that is below `SummaryWriter`."""
    # Imported here, as the process whose memory is measured imports this file.
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    with path.open("wb") as file:
        writer = RecordWriter(file)
        for step, *values in rows:
            for tag, value in zip(_names([step, *values])[1:], values, strict=True):
                scalar = Summary.Value(tag=f"train/{tag}", simple_value=value)
                summary = Summary(value=[scalar])
                event = Event(wall_time=1.8e9 + step, step=int(step), summary=summary)
                writer.write(event.SerializeToString())


WRITERS: dict[str, Callable[[Path, Rows], None]] = {
    "CSV": write_csv,
    "JSON lines": write_json_lines,
    "events": write_events,
}


def measure(name: str, rows: int, read: Callable[[], object]) -> float:
    """Print how long it takes.

    Returns:
        seconds.
    """
    started = process_time()
    read()
    seconds = process_time() - started
    print(f"{name:32} {seconds / rows * 1e6:8.2f} us a row  {rows / seconds:10,.0f} rows/s")
    return seconds


def measure_formats(folder: Path) -> None:
    """Read and judge a log of each format."""
    for name, write in WRITERS.items():
        log = folder / name
        write(log, islice(rows(), ROWS))
        measure(f"{name}, read alone", ROWS, lambda log=log: _read(log))  # type: ignore[misc]
        for profile in ("robust", "textbook"):
            plan = Plan(profiles=(profile,))
            measure(f"{name}, {profile}", ROWS, lambda log=log, plan=plan: _play(log, plan))  # type: ignore[misc]


def measure_peer(events: Path) -> None:
    """What TensorBoard takes to read an event file, beside what we take."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    write_events(events, islice(rows(), SHORT))
    next(EventFileLoader(str(events)).Load())  # imports what it needs
    ours = measure("events, read alone", SHORT, lambda: _read(events))
    loader = EventFileLoader(str(events))
    theirs = measure("TensorBoard's EventFileLoader", SHORT, lambda: deque(loader.Load(), 0))
    print(f"{'':32} {theirs / ours:.1f} times as long as ours")


def measure_big_logs(folder: Path, size: int) -> None:
    """What a log of so many bytes takes, beside a short one of the same format."""
    for name, write in WRITERS.items():
        log = folder / name
        write(log, islice(rows(MORE_VALUES), SHORT))
        small, _, _ = replayed_alone(log)
        if write is write_events:
            write(log, _until(log, size))
        else:
            _lengthen(log, size)
        big, seconds, judged = replayed_alone(log)
        written = log.stat().st_size
        print(
            f"{name}, {written / 1e9:.2f} GB, {judged:,} rows of {len(NAMES) - 1 + MORE_VALUES}"
            f" values: {judged / seconds:,.0f} rows/s, {written / seconds / 1e6:.0f} MB/s;"
            f" peak memory {big / 1e6:.1f} MB, of {SHORT:,} rows {small / 1e6:.1f} MB",
            flush=True,
        )
        log.unlink()


def _until(log: Path, size: int) -> Rows:
    """Rows until a log that is made of them is so large."""
    for number, row in enumerate(rows(MORE_VALUES)):
        if number % 1000 == 0 and log.stat().st_size >= size:
            return
        yield row


def _lengthen(log: Path, size: int) -> None:
    """Write the last lines of a text again and again with other steps, until it is so large:
    numbers as text take longer to make than to read."""
    with log.open(encoding="utf-8", newline="") as file:
        lines = deque((re.split(r"\d+", line, maxsplit=1) for line in file), maxlen=SHORT // 2)
    with log.open("a", encoding="utf-8", newline="") as file:
        steps = count(SHORT + 1)
        while file.tell() < size:
            file.writelines(f"{start}{next(steps)}{end}" for start, end in lines)


def replayed_alone(log: Path) -> tuple[int, float, int]:
    """The peak memory in bytes, the processor's seconds and the rows of a replay in a process of
    its own."""
    command = [sys.executable, "-m", "benchmarks.replay", REPLAY_ALONE, str(log)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    peak, seconds, judged = output.split()
    return int(peak), float(seconds), int(judged)


def _replay_alone(log: Path) -> None:
    started = process_time()
    playback = Playback(log, Plan())
    playback.play()
    seconds = process_time() - started
    # Not getrusage's, which begins with that of the process that started this one.
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    assert found is not None
    print(int(found[1]) * 1024, seconds, playback.course.rows)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--gigabytes", type=float, help="replay logs of this size, and only those")
    parser.add_argument(REPLAY_ALONE, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.replay_alone is not None:
        _replay_alone(options.replay_alone)
        return
    with TemporaryDirectory() as name:
        folder = Path(name)
        if options.gigabytes is not None:
            measure_big_logs(folder, round(options.gigabytes * 1e9))
            return
        measure_formats(folder)
        measure_peer(folder / "peer")
        log = folder / "log"
        for count in (SHORT, LONG):
            write_csv(log, islice(rows(), count))
            print(f"peak memory, {count:9,} rows: {replayed_alone(log)[0] / 1e6:.1f} MB")


def _read(log: Path) -> None:
    deque(Playback(log, Plan()).events(), maxlen=0)


def _play(log: Path, plan: Plan) -> None:
    Playback(log, plan).play()


if __name__ == "__main__":
    main(sys.argv[1:])
