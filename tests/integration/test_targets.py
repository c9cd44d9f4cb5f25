# SPDX-License-Identifier: Apache-2.0
"""Processes and a real Prometheus that have nothing in common but a folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml

from scripts.processes import Child, Children, wait_until_ready
from tests.conftest import ROOT
from tests.ports import free_port

pytestmark = pytest.mark.e2e

TRAIN = """
import os, sys, time
from training_exporter import TrainingExporter

os.chdir(sys.argv[1])

with TrainingExporter(port=0, address="127.0.0.1", gpu_metrics=False) as exporter:
    while not os.path.exists(f"end-{exporter.status.rank}"):
        exporter.step(loss=1.0)
        time.sleep(0.05)
"""

ENDS = {
    "a block": ("with exporter: run()", []),
    "no block": ("run()", []),
    "sys.exit": ("run(); sys.exit(3)", []),
    "an error": ("run(); raise ValueError", []),
    "a child that closes what it inherited": ("run(); fork(exporter.close)", ["1"]),
    "a child that ends": ("run(); fork(lambda: None)", ["1"]),
    "in a child": ("fork(run)", ["0"]),
}
"""How it ends -> the code, and how many files there are once a child has ended."""
END = """
import multiprocessing, os, sys
from training_exporter import TrainingExporter

exporter = TrainingExporter(port=0, address="127.0.0.1", gpu_metrics=False, sd_dir="targets")

def written():
    return os.listdir("targets") if os.path.exists("targets") else []

def run():
    exporter.start()
    while not written() or written()[0].endswith(".tmp"):
        pass
    print("written", flush=True)

def fork(what):
    child = multiprocessing.get_context("fork").Process(target=what)
    child.start()
    child.join()
    print(len(written()), flush=True)
"""
RUNNING = 'training_state{state="running"} == 1'
Query = Callable[[str], list[dict[str, str]]]


@pytest.fixture
def children() -> Iterator[Children]:
    with Children() as children:
        yield children


@pytest.fixture
def query(tmp_path: Path, binary: Callable[[str], str], children: Children) -> Query:
    """Asks a Prometheus, which has the shipped way of finding targets, for the labels of series."""
    config = yaml.safe_load((ROOT / "prometheus" / "prometheus.yml").read_text())
    path, port = tmp_path / "prometheus.yml", free_port()
    config = {
        "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms"},
        "scrape_configs": config["scrape_configs"],
    }
    path.write_text(yaml.safe_dump(config))
    (tmp_path / "targets").mkdir()
    prometheus = children.start(
        "Prometheus",
        [
            binary("prometheus"),
            f"--config.file={path}",
            f"--storage.tsdb.path={tmp_path / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        tmp_path / "prometheus.log",
    )
    wait_until_ready(prometheus, f"http://127.0.0.1:{port}/-/ready", given_up=lambda: False)

    def asked(expression: str) -> list[dict[str, str]]:
        arguments = urlencode({"query": expression})
        with urlopen(f"http://127.0.0.1:{port}/api/v1/query?{arguments}", timeout=10) as answer:
            return [series["metric"] for series in json.load(answer)["data"]["result"]]

    return asked


def until(holds: Callable[[], object], *, seconds: float = 40) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.1)


@pytest.fixture
def launch(tmp_path: Path, children: Children) -> Callable[[int], Child]:
    """Starts a rank of a run of two, as torchrun does."""

    def start(rank: int) -> Child:
        told = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        ours = {"RUN": "llama", "SD_DIR": "targets"}
        return children.start(
            f"rank {rank}",
            [sys.executable, "-c", TRAIN, str(tmp_path)],
            tmp_path / f"rank-{rank}.log",
            {**os.environ, **told, **{f"TRAINING_EXPORTER_{k}": v for k, v in ours.items()}},
        )

    return start


def test_ranks_are_found_and_go_as_they_came(
    query: Query, launch: Callable[[int], Child], tmp_path: Path
) -> None:
    """Two ranks are found by their files, each on its port and by its labels. One ends: its end is
    scraped, then its file goes, then its target. One is killed: its target is down until the next
    process of this machine removes the file."""
    targets = tmp_path / "targets"
    ranks = [launch(0), launch(1)]
    until(lambda: len(query(RUNNING)) == 2)
    assert {(found["run"], found["rank"]) for found in query(RUNNING)} == {
        ("llama", "0"), ("llama", "1"),
    }  # fmt: skip
    assert len({found["instance"] for found in query(RUNNING)}) == 2
    assert {label for found in query("up == 1") for label in found} == {
        "__name__", "instance", "job",
    }  # fmt: skip

    (tmp_path / "end-0").touch()
    ranks[0].wait(30)
    assert ranks[0].code == 0
    assert query('max_over_time(training_state{state="completed", rank="0"}[1m]) == 1')
    assert [path.name[:9] for path in targets.iterdir()] == ["llama-r1-"]
    until(lambda: len(query("up")) == 1)
    assert query("up == 1")

    ranks[1].signal(signal.SIGKILL)
    until(lambda: query("up == 0"))
    (left,) = targets.iterdir()
    launch(1)
    until(lambda: query("up == 1") and not query("up == 0"))
    assert not left.exists()
    assert len(list(targets.iterdir())) == 1


@pytest.mark.parametrize("name", ENDS)
def test_whatever_way_a_process_ends_its_file_goes_with_it(name: str, tmp_path: Path) -> None:
    """As long as it ends by itself; and not with a child that ends before."""
    code, files_then = ENDS[name]
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", END + code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert ended.stdout.split() == ["written", *files_then], ended.stderr
    assert list((tmp_path / "targets").iterdir()) == []
