# SPDX-License-Identifier: Apache-2.0
"""A past run goes into a real Prometheus, and comes back by query."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Callable
from pathlib import Path
from time import time
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest

from scripts.processes import Children, wait_until_ready
from tests.ports import free_port
from tests.unit.replay.logs import NAN, ROWS, rows, write_csv
from tests.unit.replay.test_command import run

pytestmark = pytest.mark.e2e

SECONDS = 10


def queried(url: str, expression: str, at: float) -> float | None:
    """What an instant query says of the only series that it finds."""
    with urlopen(f"{url}/api/v1/query?{urlencode({'query': expression, 'time': at})}") as answer:
        found = json.load(answer)["data"]["result"]
    return float(found[0]["value"][1]) if found else None


def test_a_past_run_in_prometheus(binary: Callable[[str], str], tmp_path: Path) -> None:
    """Every row is a sample, a NaN is a NaN, and the anomaly counter rises where it was found."""
    promtool, prometheus = binary("promtool"), binary("prometheus")
    began = int(time()) - 2 * 3600 - ROWS * SECONDS
    records = [{**row, "timestamp": began + SECONDS * row["step"]} for row in rows()]
    log, file = write_csv(tmp_path / "log.csv", records), tmp_path / "run.om"
    data = tmp_path / "data"
    assert run("replay", log, "--openmetrics", file, "--run", "past").exit_code == 0
    load = [promtool, "tsdb", "create-blocks-from", "openmetrics", str(file), str(data)]
    subprocess.run(load, check=True, capture_output=True, timeout=60)
    config, port = tmp_path / "prometheus.yml", free_port()
    config.write_text("{}\n")

    with Children() as children:
        server = children.start(
            "prometheus",
            [
                prometheus, f"--config.file={config}", f"--storage.tsdb.path={data}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            tmp_path / "prometheus.log",
        )  # fmt: skip
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(server, f"{url}/-/ready", given_up=lambda: False, seconds=60)
        end = began + ROWS * SECONDS
        series = '{run="past",rank="0"}'
        count = queried(url, f"count_over_time(training_loss{series}[2h])", end)
        loss = queried(url, f"training_loss{series}", end)
        nan = queried(url, f"training_loss{series}", began + NAN * SECONDS)
        found = 'increase(training_anomalies_total{run="past",kind="non_finite"}[2h])'
        anomalies = queried(url, found, end)

    assert count == ROWS
    assert loss == records[-1]["loss"]
    assert nan is not None
    assert math.isnan(nan)
    assert anomalies == pytest.approx(1.0, rel=0.1)
