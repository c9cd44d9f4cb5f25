# SPDX-License-Identifier: Apache-2.0
"""What a run of 16, 64 and 256 ranks costs the Prometheus that watches it by the shipped rules.

The pages are the exporter's own, with the series of a GPU and moving values; only the rank is
exchanged. One process serves them all, so a scrape is as long as Prometheus needs, and not a
training. Prometheus starts with what the rules look back at, an hour for some, and is measured for
a minute; its memory grows on with the two to three hours that it keeps in memory.

The time of rules is wall time: on a machine that has other work most of it is waiting for a
processor. Then start it before all others, as root: nice -n -15 python -m benchmarks ranks
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from threading import Event, Thread
from time import perf_counter, sleep, time
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit
from urllib.request import urlopen

import yaml

from benchmarks.rules import OF_RANK, Ranks, ask, write_history
from scripts.monitoring import prometheus_config
from scripts.processes import Child, Children, free_port, wait_until_ready
from training_exporter.catalog import LAYER_METRICS

SIZES = (16, 64, 256)
SETTLING_SECONDS = 20
MEASURED_SECONDS = 60
LOOKS = 30
"""How often in that time groups of rules are asked how long they took."""
LAYERS = 48
QUERIES = {
    "mean loss": ("avg by (run) (training_loss)", "run:training_loss:mean"),
    "tokens per second": (
        "sum by (run) (training_tokens_per_second)", "run:training_tokens_per_second:sum",
    ),
    "time of a step": (
        "avg by (run) ((rate(training_step_duration_seconds_sum[5m])"
        " + rate(training_data_wait_seconds_total[5m]))"
        " / rate(training_step_duration_seconds_count[5m]))",
        "run:training_pace_seconds:mean5m",
    ),
}  # fmt: skip
"""Panel -> as it would be asked, and as it is recorded."""


class Pages:
    """The pages of all ranks, made anew each second."""

    def __init__(self) -> None:
        self._ranks = Ranks()
        self._over = Event()
        self._thread = Thread(target=self._move, daemon=True)
        self._step()

    def _step(self) -> None:
        exporter = self._ranks.exporter
        exporter.observe_forward(begun=1, ended=1, seconds=0.3)
        self._ranks.step(2.0 + time() % 1)
        self.text = self._ranks.page(0) + _layers(time() % 1)

    def _move(self) -> None:
        while not self._over.wait(1.0):
            self._step()

    def __enter__(self) -> Pages:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def of(self, rank: str) -> bytes:
        return OF_RANK.sub(b'rank="%s"' % rank.encode(), self.text)


def _layers(value: float) -> bytes:
    """The series of a model with so many layers."""
    return b"".join(
        b'%s{layer="%d",rank="0",run="bench"} %f\n' % (metric.name.encode(), layer, value + layer)
        for metric in LAYER_METRICS
        if metric.labels == ("layer",)
        for layer in range(LAYERS)
    )


@contextmanager
def served(pages: Pages) -> Iterator[str]:
    """All pages at one address, which it yields; the rank is in the query."""

    class Page(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = pages.of(parse_qs(urlsplit(self.path).query)["rank"][0])
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    server.daemon_threads = True
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def config_for(address: str, ranks: int) -> str:
    config: dict[str, Any] = yaml.safe_load(prometheus_config([], f"127.0.0.1:{free_port()}"))
    config["scrape_configs"][0]["static_configs"] = [
        {"targets": [address], "labels": {"__param_rank": str(rank), "instance": f"rank-{rank}"}}
        for rank in range(ranks)
    ]
    return str(yaml.safe_dump(config))


def start(
    children: Children, folder: Path, address: str, page: str, ranks: int, programs: list[str]
) -> tuple[Child, str]:
    prometheus, promtool = programs
    history, data, port = folder / "history.om", folder / "data", free_port()
    write_history(page, [f"rank-{rank}" for rank in range(ranks)], history)
    command = [promtool, "tsdb", "create-blocks-from", "openmetrics", str(history), str(data)]
    subprocess.run(command, check=True, capture_output=True)
    history.unlink()
    (folder / "prometheus.yml").write_text(config_for(address, ranks))
    child = children.start(
        "Prometheus",
        [
            prometheus,
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={data}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        folder / "prometheus.log",
    )
    url = f"http://127.0.0.1:{port}"
    wait_until_ready(child, f"{url}/-/ready", given_up=lambda: False)
    make_as_nice_as_we_are(child.process.pid)
    return child, url


def make_as_nice_as_we_are(pid: int) -> None:
    """Linux shares processors out between sessions first, and a child has one of its own."""
    for process in (pid, os.getpid()):
        session = Path(f"/proc/{process}/autogroup")
        if os.nice(0) and session.exists():
            session.write_text(str(os.nice(0)))


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def own_metrics(url: str) -> Mapping[str, float]:
    """What Prometheus says of itself, summed over labels."""
    with urlopen(f"{url}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    sums: dict[str, float] = {}
    for series, _, value in (line.rpartition(" ") for line in lines if not line.startswith("#")):
        name = series.partition("{")[0]
        sums[name] = sums.get(name, 0.0) + float(value)
    return sums


def instant(url: str, query: str) -> float:
    result = ask(url, f"query?{urlencode({'query': query})}")["result"]
    return float(result[0]["value"][1]) if result else float("nan")


def query_seconds(url: str, query: str) -> float:
    """Drawing a minute in 60 points; the median of five times."""
    times = []
    for _ in range(5):
        now = time()
        asked = urlencode({"query": query, "start": now - 60, "end": now, "step": 1})
        began = perf_counter()
        ask(url, f"query_range?{asked}")
        times.append(perf_counter() - began)
    return median(times)


def slowest_group(url: str) -> float:
    """The largest share of its interval that a group of rules took, within the measured time."""
    largest = 0.0
    for _ in range(LOOKS):
        sleep(MEASURED_SECONDS / LOOKS)
        for group in ask(url, "rules")["groups"]:
            largest = max(largest, group["evaluationTime"] / group["interval"])
    return largest


def measure(child: Child, url: str, ranks: int) -> None:
    pid = child.process.pid
    sleep(SETTLING_SECONDS)
    before, used = own_metrics(url), processor_seconds(pid)
    slowest = slowest_group(url)
    after, used = own_metrics(url), processor_seconds(pid) - used

    def a_second(name: str) -> float:
        return (after[name] - before[name]) / MEASURED_SECONDS

    samples = a_second("prometheus_tsdb_head_samples_appended_total")
    rules = a_second("prometheus_rule_evaluation_duration_seconds_sum")
    missed = after["prometheus_rule_group_iterations_missed_total"]
    scrape = instant(url, "avg(avg_over_time(scrape_duration_seconds[1m]))")
    longest = instant(url, "max(max_over_time(scrape_duration_seconds[1m]))")
    print(
        f"| {ranks} | {instant(url, 'avg(scrape_samples_scraped)'):,.0f} "
        f"| {after['prometheus_tsdb_head_series']:,.0f} | {samples:,.0f} "
        f"| {scrape * 1e3:.1f} / {longest * 1e3:.0f} ms | {used / MEASURED_SECONDS:.1%} "
        f"| {rules:.1%} | {slowest:.0%} | {missed:.0f} | {resident_bytes(pid) / 2**20:,.0f} MiB "
        f"| {os.getloadavg()[0]:.1f} |",
        flush=True,
    )
    for panel, queries in QUERIES.items():
        raw, recorded = (query_seconds(url, query) * 1e3 for query in queries)
        print(f"    {ranks} ranks, {panel}: raw {raw:.1f} ms, recorded {recorded:.1f} ms")


def main(arguments: list[str]) -> None:
    found = [shutil.which("prometheus"), shutil.which("promtool")]
    programs = [path for path in found if path]
    if len(programs) < 2:
        print("prometheus and promtool are not here; get them with: apt-get install prometheus")
        return
    version = subprocess.run([programs[0], "--version"], capture_output=True, text=True)
    print((version.stdout + version.stderr).splitlines()[0])
    print("| ranks | series each | series | samples/s | scrape mean / max | CPU | rules, wall | "
          "slowest group, of its interval | evaluations missed | memory | load |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for ranks in map(int, arguments) if arguments else SIZES:
        with (
            Pages() as pages, served(pages) as address, TemporaryDirectory() as name,
            Children() as children,
        ):  # fmt: skip
            page = pages.of("0").decode()
            measure(*start(children, Path(name), address, page, ranks, programs), ranks)
