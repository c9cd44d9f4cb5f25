# SPDX-License-Identifier: Apache-2.0
"""What the alert rules cost a real Prometheus that watches a run of 64 ranks, each with a GPU.

The pages are the exporter's own; only the rank is exchanged. Prometheus starts with what the rules
look back at, so that windows are as full as after hours, scrapes 64 targets with the shipped
intervals, and says itself how long its groups of rules took. At the end a loss of NaN on every rank
is added: the texts of alerts that fire are made anew in each evaluation.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import nan
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from time import sleep, time
from typing import Any
from urllib.request import urlopen

import yaml
from prometheus_client import CollectorRegistry, generate_latest

from benchmarks.report import QUICK, often
from scripts.monitoring import SHIPPED, prometheus_config
from scripts.processes import Children, free_port, wait_until_ready
from training_exporter import StepSignals, TrainingExporter
from training_exporter.catalog import ECC_ERROR_TYPES, RUNNING, THROTTLE_REASONS, XIDS
from training_exporter.collectors.cuda_memory import CudaMemoryCollector
from training_exporter.collectors.gpu import GpuCollector
from training_exporter.gpu.readings import AllocatorReading, GpuReading, GpuReadings

RANKS = often(64)
SCRAPE_SECONDS = 5
WINDOW = re.compile(r"([\w:]+)(?:\{[^}]*\})?\[(\d+)([smh])\](?: offset (\d+)([smh]))?")
UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600}
REMEMBERED = (
    'run_rank:training_live:max{rank="0",run="bench"} 1\n'
    'run:training_unfinished:max{run="bench"} 1\n'
)
"""What the rules have recorded of a run that is well."""
OF_RANK = re.compile(rb'(?<!_)rank="0"')
SETTLING_SECONDS = 6 if QUICK else 16
"""An evaluation of every group; those of the hardware take turns of 15 s."""
GPU = GpuReadings(
    gpus=(
        GpuReading(
            gpu="0",
            utilization=0.97,
            memory_used_bytes=6e10,
            memory_total_bytes=8e10,
            throttled=dict.fromkeys(THROTTLE_REASONS, 0.0),
            ecc_errors=dict.fromkeys(ECC_ERROR_TYPES, 0.0),
            row_remap_failed=0.0,
            xids=dict.fromkeys(XIDS, 0.0),
        ),
    ),
    stalled=False,
)
ALLOCATOR = AllocatorReading(0, 5e10, 6e10, 6e10, 7e10, 1e9, 8e10, 0.0, 0.0)


class Ranks:
    """One run's exporter, whose page stands for those of all its ranks."""

    def __init__(self) -> None:
        self.exporter = TrainingExporter(serve=False, run="bench", rank=0)
        self.exporter.set_state(RUNNING)
        self._gpu = CollectorRegistry()
        self._gpu.register(GpuCollector(self._labels, lambda: GPU))
        self._gpu.register(CudaMemoryCollector(self._labels, lambda: (ALLOCATOR,)))
        self._steps = 0
        for step in range(500):
            self.step(4.0 - step / 500)

    @staticmethod
    def _labels() -> dict[str, str]:
        return {"run": "bench", "rank": "0"}

    def step(self, loss: float) -> None:
        self._steps += 1
        signals = StepSignals(
            self._steps, time(), loss=loss, grad_norm=1.0, step_seconds=1.0, tokens=4096.0
        )
        self.exporter.observe(signals)

    def page(self, rank: int) -> bytes:
        text = generate_latest(self.exporter.registry) + generate_latest(self._gpu)
        return OF_RANK.sub(b'rank="%d"' % rank, text)


@contextmanager
def served(ranks: Ranks, number: int) -> Iterator[list[str]]:
    """The pages of so many ranks, each under an address of its own; yields the addresses."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = ranks.page(ports.index(self.server.server_port))
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None: ...

    servers = [ThreadingHTTPServer(("127.0.0.1", 0), Page) for _ in range(number)]
    ports = [server.server_port for server in servers]
    for server in servers:
        Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield [f"127.0.0.1:{port}" for port in ports]
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


def looked_back_at() -> dict[str, int]:
    """Name of a series -> how far the shipped rules look back at it, in seconds."""
    longest: dict[str, int] = {}
    for rule in shipped_rules():
        for name, window, unit, offset, offset_unit in WINDOW.findall(rule["expr"]):
            ago = int(offset) * UNIT_SECONDS[offset_unit] if offset else 0
            seconds = int(window) * UNIT_SECONDS[unit] + ago
            longest[name] = max(seconds, longest.get(name, 0))
    return longest


def shipped_rules() -> Iterator[dict[str, Any]]:
    for path in SHIPPED.parent.glob("../alertmanager/rules/*.yml"):
        for group in yaml.safe_load(path.read_text())["groups"]:
            yield from group["rules"]


def write_history(page: str, targets: list[str], path: Path) -> None:
    """The series that the rules look back at, of all ranks, every five seconds up to now, as far
    as they look, as OpenMetrics. What was positive is not among them: nothing has happened."""
    windows = looked_back_at()
    lines = [line.rpartition(" ") for line in (page + REMEMBERED).splitlines()]
    now = int(time()) - SCRAPE_SECONDS
    with path.open("w") as out:
        for series, _, value in sorted(line for line in lines if name_of(line[0]) in windows):
            times = range(now - windows[name_of(series)], now + 1, SCRAPE_SECONDS)
            for labels in dict.fromkeys(labels_of(series, targets)):
                out.writelines(f"{labels} {value} {at}\n" for at in times)
        out.write("# EOF\n")


def labels_of(series: str, targets: list[str]) -> Iterator[str]:
    """The series of each rank; what is recorded has no target."""
    scraped = ":" not in name_of(series)
    for rank, target in enumerate(targets):
        of_target = f'job="training",instance="{target}",' if scraped else ""
        yield OF_RANK.sub(f'{of_target}rank="{rank}"'.encode(), series.encode()).decode()


def name_of(line: str) -> str:
    return re.split(r"[{ ]", line, maxsplit=1)[0]


def ask(url: str, path: str) -> Any:
    with urlopen(f"{url}/api/v1/{path}", timeout=10) as answer:
        return json.load(answer)["data"]


def report(url: str, title: str) -> None:
    """A line for each group: its interval, its last evaluation, and the share of a core."""
    groups = ask(url, "rules")["groups"]
    alerts = ask(url, "alerts")["alerts"]
    firing = sorted(a["labels"]["alertname"] for a in alerts if a["state"] == "firing")
    print(f"{title}; firing: {', '.join(firing) or 'nothing'}")
    shares = []
    for group in groups:
        seconds, interval = group["evaluationTime"], group["interval"]
        shares.append(seconds / interval)
        print(
            f"  {group['name']:20} {len(group['rules']):3} rules every {interval:3} s "
            f"{seconds * 1e3:8.1f} ms  {seconds / interval:7.2%} of a core"
        )
    print(f"  {'all':20} {sum(shares):47.2%} of a core")


def count(url: str, query: str) -> int:
    result = ask(url, f"query?query={query}")["result"]
    return int(result[0]["value"][1]) if result else 0


def main(arguments: list[str]) -> None:
    prometheus, promtool = shutil.which("prometheus"), shutil.which("promtool")
    if prometheus is None or promtool is None:
        print("prometheus and promtool are not here; get them with: apt-get install prometheus")
        return
    version = subprocess.run([prometheus, "--version"], capture_output=True, text=True)
    print((version.stdout + version.stderr).splitlines()[0])
    ranks = Ranks()
    with TemporaryDirectory() as name, served(ranks, RANKS) as targets, Children() as children:
        url = start(children, Path(name), ranks, targets, prometheus, promtool)
        sleep(SETTLING_SECONDS)
        raw = count(url, "count({job=%22training%22})")
        recorded = count(url, "count({__name__=~%22.*:training_.*|training_.*:.*%22})")
        print(f"{RANKS} targets, {raw} series scraped, {recorded} recorded")
        report(url, "healthy")
        ranks.step(nan)
        sleep(SETTLING_SECONDS)
        report(url, f"loss NaN on {RANKS} ranks")


def start(
    children: Children,
    folder: Path,
    ranks: Ranks,
    targets: list[str],
    prometheus: str,
    promtool: str,
) -> str:
    """Start Prometheus over a history, and wait until it is ready; returns its address."""
    history, data, port = folder / "history.om", folder / "data", free_port()
    write_history(ranks.page(0).decode(), targets, history)
    command = [promtool, "tsdb", "create-blocks-from", "openmetrics", str(history), str(data)]
    subprocess.run(command, check=True, capture_output=True)
    config = folder / "prometheus.yml"
    config.write_text(prometheus_config(targets, f"127.0.0.1:{free_port()}"))
    child = children.start(
        "Prometheus",
        [
            prometheus,
            f"--config.file={config}",
            f"--storage.tsdb.path={data}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        folder / "prometheus.log",
    )
    url = f"http://127.0.0.1:{port}"
    wait_until_ready(child, f"{url}/-/ready", given_up=lambda: False)
    return url
