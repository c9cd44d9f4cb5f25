# SPDX-License-Identifier: Apache-2.0
"""What reading GPUs costs, and what it costs others that the driver hangs.

On the stand-in library, whose answers take no time but for PCIe throughput: so this is the cost of
asking, beside nvitop-exporter on the same library. A real driver's own time comes on top for both.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, sleep, thread_time

from prometheus_client import CollectorRegistry

from benchmarks.report import often, repeated, side_by_side
from benchmarks.scrape import ACCEPT, scrape
from training_exporter import TrainingExporter
from training_exporter.config import ExporterConfig
from training_exporter.demo import stand_in_nvml
from training_exporter.demo.stand_in_nvml import Control
from training_exporter.gpu.calls import STALL_SECONDS
from training_exporter.gpu.own import OwnGpus
from training_exporter.gpu.watch import GpuWatch, Plan

GPUS = 8
INTERVAL = ExporterConfig().gpu_interval
ROUNDS = 15
EXITS = often(9)
SCRAPES = often(50)
ENDING = """
import sys, time
from training_exporter import TrainingExporter
exporter = TrainingExporter(serve=False, gpus="all", gpu_interval=0.5).start()
while not exporter.gpu_readings.gpus:
    time.sleep(0.01)
print("reading", flush=True)
sys.stdin.readline()
"""


@contextmanager
def stand_in() -> Iterator[tuple[Control, Path]]:
    """Eight GPUs without hardware, for this process and for others that look in the folder."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        library = stand_in_nvml.build(folder)
        control = Control.create(folder / "control", stand_in_nvml.load(library))
        control.gpu_count = GPUS
        control.move()
        os.environ[stand_in_nvml.VARIABLE] = str(control.path)
        try:
            yield control, folder
        finally:
            control.release()


def main(arguments: list[str]) -> None:
    with stand_in() as (control, folder):
        compare_costs()
        compare_scrapes(control)
        compare_exits(control, folder)


# The cost of a sample


def compare_costs() -> None:
    """Wall and processor time per GPU, and the share of a core at each one's default interval and
    at ours."""
    candidates = {
        "ours": (our_sample(pcie=False), INTERVAL),
        "ours, with gpu_pcie": (our_sample(pcie=True), INTERVAL),
    }
    print(f"nvidia-ml-py {version('nvidia-ml-py')}")
    if find_spec("nvitop_exporter") is not None:
        print(f"nvitop {version('nvitop')}, nvitop-exporter {version('nvitop-exporter')}")
        candidates["nvitop-exporter, its GPU part"] = (nvitop_sample(), 1.0)
    else:
        print("nvitop-exporter is not installed")
    for sample, _ in candidates.values():
        sample()
    wall = side_by_side({name: repeated(each) for name, (each, _) in candidates.items()},
                        rounds=ROUNDS, calls=1)  # fmt: skip
    for name, (sample, interval) in candidates.items():
        busy = processor_seconds(sample)
        shares = [f"{busy / each:.3%} every {each:g} s" for each in sorted({interval, INTERVAL})]
        print(
            f"{name:32} per GPU {wall[name] / GPUS * 1e3:7.3f} ms, of which processor "
            f"{busy / GPUS * 1e3:6.3f} ms; {GPUS} GPUs take of a core {', '.join(shares)}"
        )


def our_sample(*, pcie: bool) -> Callable[[], object]:
    watch = GpuWatch(Plan("all", pcie=pcie), OwnGpus("all", tuple, {}, lambda used: None))
    watch.sample()
    assert len(watch.readings().gpus) == GPUS
    return watch.sample


def nvitop_sample() -> Callable[[], object]:
    from nvitop import Device
    from nvitop_exporter.exporter import PrometheusExporter

    devices = Device.all()
    assert len(devices) == GPUS
    exporter = PrometheusExporter(devices, "host", registry=CollectorRegistry())

    def sample() -> None:
        for device in devices:
            exporter.update_device(device)

    return sample


def processor_seconds(sample: Callable[[], object]) -> float:
    times = []
    for _ in range(often(ROUNDS)):
        began = thread_time()
        sample()
        times.append(thread_time() - began)
    return median(times)


# A driver that hangs


def compare_scrapes(control: Control) -> None:
    """Scrapes while the driver answers, while it hangs, and of a page without GPUs."""
    exporter = TrainingExporter(port=0, address="127.0.0.1", gpus="all", gpu_interval=0.5).start()
    without = TrainingExporter(port=0, address="127.0.0.1", gpu_metrics=False).start()
    assert exporter.port is not None
    assert without.port is not None
    while not exporter.gpu_readings.gpus:
        sleep(0.01)
    answers = scrape_milliseconds(exporter.port)
    control.hang()
    sleep(STALL_SECONDS + 1)
    assert exporter.gpu_readings.stalled
    hangs = scrape_milliseconds(exporter.port)
    print(f"scrape, driver answers ({GPUS} GPUs)        {answers:6.2f} ms")
    print(f"scrape, driver hangs (no GPU series)   {hangs:6.2f} ms")
    print(f"scrape, without GPU metrics            {scrape_milliseconds(without.port):6.2f} ms")
    began = perf_counter()
    exporter.close()
    print(f"close, driver hangs                    {(perf_counter() - began) * 1e3:6.2f} ms")
    without.close()
    control.release()


def scrape_milliseconds(port: int) -> float:
    """Median of many."""
    return median(scrape(port, ACCEPT["OpenMetrics"]) for _ in range(SCRAPES)) * 1e3


def compare_exits(control: Control, folder: Path) -> None:
    """From the last line of a script to the end of its process, in turns."""
    times: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(EXITS):
        for hanging in times:
            times[hanging].append(exit_seconds(control, folder, hanging=hanging))
    for hanging, seconds in times.items():
        state = "hangs  " if hanging else "answers"
        print(
            f"exit of a process, driver {state}      {median(seconds) * 1e3:6.2f} ms "
            f"({min(seconds) * 1e3:.0f} to {max(seconds) * 1e3:.0f})"
        )


def exit_seconds(control: Control, folder: Path, *, hanging: bool) -> float:
    environ = {**os.environ, "LD_LIBRARY_PATH": str(folder)}
    with subprocess.Popen(
        [sys.executable, "-c", ENDING], env=environ, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        process.stdout.readline()
        if hanging:
            control.hang()
            while not control.hanging:
                sleep(0.01)
        began = perf_counter()
        process.communicate("\n")
        seconds = perf_counter() - began
    control.release()
    return seconds
