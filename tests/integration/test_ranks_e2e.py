# SPDX-License-Identifier: Apache-2.0
"""Ranks under real torchrun of which one is slow, one has a NaN, one hangs, and one is killed."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.monitoring import prometheus_config
from scripts.processes import Child, Children, wait_until_ready
from tests.conftest import ROOT
from tests.e2e.watched_demos import asked
from tests.integration.ranks_worker import SLOW_SECONDS
from tests.ports import free_port

pytestmark = pytest.mark.e2e

PATIENCE_SECONDS = 90.0
RULES = ROOT / "alertmanager" / "rules"
RANKS = 3


def write_shorter_rules(folder: Path) -> None:
    """The shipped rules in which minutes are seconds. A stall is one after six of them, and a rank
    slow by its last twenty."""
    recording = (RULES / "recording.yml").read_text()
    assert "[5m]" in recording
    recording = recording.replace("[5m]", "[20s]").replace("interval: 15s", "interval: 1s")
    (folder / "recording.yml").write_text(recording)

    rules = yaml.safe_load((RULES / "alerts.yml").read_text())
    alerts = {rule["alert"]: rule for group in rules["groups"] for rule in group["rules"]}
    alerts["TrainingStraggler"]["for"] = "4s"
    stalled = alerts["TrainingStalled"]
    assert stalled["expr"].count(" 60\n") == 1
    stalled["expr"] = stalled["expr"].replace(" 60\n", " 6\n")
    described = stalled["annotations"]["description"]
    stalled["annotations"]["description"] = described.replace("> 60`", "> 6`")
    (folder / "alerts.yml").write_text(yaml.safe_dump(rules))


def start_prometheus(children: Children, program: str, folder: Path, targets: list[str]) -> str:
    """Watching the targets by shorter rules; returns its address."""
    config = yaml.safe_load(prometheus_config(targets, "127.0.0.1:9"))
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(folder / "alerts.yml"), str(folder / "recording.yml")]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    write_shorter_rules(folder)
    port = free_port()
    child = children.start(
        "Prometheus",
        [
            program,
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        folder / "prometheus.log",
    )
    url = f"http://127.0.0.1:{port}"
    wait_until_ready(child, f"{url}/-/ready", given_up=lambda: False)
    return url


def told(url: str, alert: str) -> str:
    """What an alert says once it fires."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        for firing in asked(f"{url}/api/v1/alerts")["data"]["alerts"]:
            if firing["labels"]["alertname"] == alert and firing["state"] == "firing":
                return str(firing["annotations"]["description"])
        time.sleep(0.2)
    pytest.fail(f"{alert} did not fire")


def torchrun(children: Children, folder: Path, ranks: int, what: str) -> Child:
    worker = Path(__file__).parent / "ranks_worker.py"
    command: list[str | Path] = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}",
        # The others are to wait for the one that is gone, as on another node they would.
        "--monitor-interval=600", worker, folder, what,
    ]  # fmt: skip
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1",
        "TRAINING_EXPORTER_GPU_METRICS": "0",
    }  # fmt: skip
    return children.start("torchrun", command, folder / "torchrun.log", environment)


def reports(child: Child, folder: Path, ranks: int) -> list[dict[str, Any]]:
    """What each rank has written, once all have."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while len(list(folder.glob("*.json"))) < ranks:
        assert child.code in (None, 0), child.last_lines(40)
        assert time.monotonic() < deadline, child.last_lines(40)
        time.sleep(0.1)
    time.sleep(0.2)  # the last may be half-written
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(ranks)]


def test_a_rank_is_slow_by_its_own_time_and_the_others_only_wait(tmp_path: Path) -> None:
    """Whether its forward pass or its data takes long, and whether the others wait for it in the
    backward pass, where tokens are counted, or where buffers are exchanged."""
    with Children() as children:
        quick, slow = reports(torchrun(children, tmp_path, 2, "compare"), tmp_path, 2)

    assert quick.keys() == {"forward", "data", "no gather"}
    for what in quick:
        assert slow[what] > SLOW_SECONDS
        assert slow[what] - quick[what] > SLOW_SECONDS / 2


def test_the_rank_that_gives_trouble_is_named(tmp_path: Path, binary: Callable[[str], str]) -> None:
    """Of three ranks that train one model: the slow one, the one with a NaN, the one for which the
    others wait in a collective while it hangs, and the one that was killed."""
    program = binary("prometheus")
    with Children() as children:
        ranks = reports(torchrun(children, tmp_path, RANKS, "serve"), tmp_path, RANKS)
        targets = [f"127.0.0.1:{rank['port']}" for rank in ranks]
        url = start_prometheus(children, program, tmp_path, targets)

        assert "rank 2, step 41" in told(url, "TrainingLossNaN")
        slow = told(url, "TrainingStraggler")
        assert f"rank 1 on {socket.gethostname()}, step" in slow
        (tmp_path / "hang-1").touch()
        assert told(url, "TrainingStalled").endswith("; behind the others: rank 1.")
        os.kill(ranks[1]["pid"], signal.SIGKILL)
        assert re.search(r"ranks, rank 1, last seen at step", told(url, "TrainingVanished"))
