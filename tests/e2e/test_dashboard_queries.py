# SPDX-License-Identifier: Apache-2.0
"""Every query of every dashboard, asked of a real Prometheus that scraped real demos."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from math import nan
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest

from scripts.monitoring import Programs, start_monitoring
from scripts.processes import Child, Children
from tests.dashboards.model import Json, Query, load_all, queries, variables
from tests.ports import free_port, monitoring_ports
from training_exporter import TrainingExporter

pytestmark = pytest.mark.e2e

SCRAPE_SECONDS = 5
MIN_RATE_SECONDS = 4 * SCRAPE_SECONDS  # what Grafana makes of $__rate_interval at the least
STEPS = 260
FIRST_PORT = 22400
DEADLINE_SECONDS = 240.0
FAULTS = ("nan@60", "explosion@150", "slow-data@200")
MAY_BE_EMPTY = {
    "training_cuda_": "torch has no CUDA here",
    "training_loss_scale": "the demo trains in float32",
    "training_exporter_resume_failures": "the demo does not resume",
    "training_padding_ratio": "the demo's rows are all of one length",
    "training_restarts_total": "the demo does not go on from a checkpoint",
    'kind="restart"': "the demo does not go back",
    'activity="saving"': "the demo writes no checkpoints",
}
"""Metrics that a demo on a CPU cannot have, and why."""

DASHBOARDS = load_all()


class Demo(NamedTuple):
    run: str
    rank: int


DEMOS = (Demo("alpha", 0), Demo("alpha", 1), Demo("beta", 0))
BROKEN = "broken"
"""A run of which the loss is NaN since its tenth step."""


class Source:
    """A Prometheus as Grafana asks it.

    Args:
        url: of the server.
        end: the moment that counts as now, Unix time.
    """

    def __init__(self, url: str, end: float, seconds: float) -> None:
        self._url = url
        self.end = end
        self.seconds = seconds

    def ask(self, query: Query, values: Mapping[str, str]) -> list[Json]:
        """Ask as a panel does; the series of the answer."""
        expr = filled(query.expr, values, self.seconds)
        if query.target.get("instant"):
            return self._get("query", query=expr, time=self.end)
        return self._get(
            "query_range", query=expr, start=self.end - self.seconds, end=self.end,
            step=SCRAPE_SECONDS,
        )  # fmt: skip

    def label_values(self, expr: str, values: Mapping[str, str]) -> list[str]:
        """What `label_values(selector, label)` or `label_values(label)` of a variable gives."""
        inner = re.fullmatch(r"\s*label_values\((?:(.*),)?\s*(\w+)\s*\)\s*", expr, re.DOTALL)
        assert inner, expr
        selector = filled(inner[1] or '{__name__=~".+"}', values, self.seconds)
        return self._get(
            f"label/{inner[2]}/values",
            **{"match[]": selector, "start": self.end - self.seconds, "end": self.end},
        )

    def scraped(self, expr: str) -> list[Json]:
        return self._get("query", query=expr)

    def _get(self, path: str, **parameters: Any) -> Any:
        with urlopen(f"{self._url}/api/v1/{path}?{urlencode(parameters)}", timeout=30) as answer:
            body = json.load(answer)
        assert body["status"] == "success"
        data = body["data"]
        return data["result"] if isinstance(data, dict) else data


def filled(expr: str, values: Mapping[str, str], seconds: float) -> str:
    """A query with Grafana's variables replaced as Grafana does."""
    built_in = {
        "__rate_interval": f"{MIN_RATE_SECONDS}s",
        "__interval": f"{SCRAPE_SECONDS}s",
        "__range": f"{int(seconds)}s",
        "__range_s": str(int(seconds)),
    }
    for name, value in sorted({**built_in, **values}.items(), reverse=True):
        expr = re.sub(rf"\$\{{{name}(:\w+)?\}}|\${name}\b", lambda _, value=value: value, expr)
    return expr


@pytest.fixture(scope="module")
def source(
    tmp_path_factory: pytest.TempPathFactory, binary: Callable[[str], str]
) -> Iterator[Source]:
    """A Prometheus that has seen the demos from their start to their end."""
    programs = Programs(Path(binary("prometheus")), Path(binary("prometheus-alertmanager")))
    folder = tmp_path_factory.mktemp("dashboards")
    ports = [free_port(FIRST_PORT + number) for number in range(len(DEMOS))]
    begun = time.time()
    broken = TrainingExporter(
        run=BROKEN, address="127.0.0.1", port=0, gpu_metrics=False, forensics=False
    )
    with Children() as children, broken:
        targets = [f"127.0.0.1:{port}" for port in (*ports, broken.port)]
        prometheus = start_monitoring(
            children, folder, programs, targets, {}, ports=monitoring_ports()
        ).prometheus
        started = [
            _start(children, folder, demo, port) for demo, port in zip(DEMOS, ports, strict=True)
        ]
        for step in range(1, 20):
            broken.step(loss=2.0 if step < 10 else nan, step=step)
        source = Source(prometheus.url, time.time(), 300.0)
        _await_end(source, started)
        time.sleep(2 * SCRAPE_SECONDS)  # or the last point of a range may lie before the end
        source.end = time.time()
        source.seconds = source.end - begun + 10
        yield source
    broken.close()


def _start(children: Children, folder: Path, demo: Demo, port: int) -> Child:
    program = Path(sys.executable).with_name("training-exporter")
    command = [
        program, "demo", "--run", demo.run, "--port", str(port), "--steps", str(STEPS),
        "--eval-every", "50", "--fake-gpus", "2", "--linger", "600",
        *[part for fault in FAULTS for part in ("--fault", fault)],
    ]  # fmt: skip
    environment = {
        **os.environ,
        "TRAINING_EXPORTER_ADDRESS": "127.0.0.1",
        "TRAINING_EXPORTER_RANK": str(demo.rank),
        "TRAINING_EXPORTER_LAYER_INTERVAL": "1",
        "TRAINING_EXPORTER_PEAK_FLOPS": "1e12",
        "TRAINING_EXPORTER_GRADIENT_HISTOGRAM_INTERVAL": "20",
        "OMP_NUM_THREADS": "1",
    }
    name = f"{demo.run}-{demo.rank}"
    return children.start(name, command, folder / f"{name}.log", environment)


def _await_end(source: Source, demos: list[Child]) -> None:
    """Until each demo has been scraped with its end on the page."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while len(source.scraped('training_state{state="completed"} == 1')) < len(demos):
        for demo in demos:
            assert demo.code is None, demo.died()
        assert time.monotonic() < deadline, "the demos did not come to their end"
        time.sleep(1)


CHOICES: dict[str, dict[str, str]] = {
    "all": {"job": ".+", "run": ".+", "rank": ".+", "instance": ".+"},
    "one run": {"job": "training", "run": "beta", "rank": ".+"},
    "several": {"job": "training", "run": "(alpha|beta)", "rank": "(0|1)"},
}


def _chosen(dashboard: Json, choice: Mapping[str, str]) -> dict[str, str]:
    """A value for each variable of a dashboard: the choice's, else everything there is."""
    values: dict[str, str] = {}
    for one in variables(dashboard):
        default = one.get("allValue") or ".+"
        if one.get("type") not in ("query", "datasource"):
            default = str((one.get("current") or {}).get("value") or one.get("query") or ".+")
        values[one["name"]] = choice.get(one["name"], default)
    return values


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("file", DASHBOARDS)
def test_every_query_answers(source: Source, file: str, choice: str) -> None:
    """Each query of a dashboard finds data of the demos, with the labels that its legend names."""
    dashboard = DASHBOARDS[file]
    values = _chosen(dashboard, CHOICES[choice])
    wrong = []
    for query in queries(dashboard):
        found = source.ask(query, values)
        if not found and not _may_be_empty(query):
            wrong.append(f"{query.place}: nothing for {filled(query.expr, values, 300)}")
        named = set(re.findall(r"{{\s*(\w+)\s*}}", query.target.get("legendFormat") or ""))
        nameless = [series["metric"] for series in found if not named <= set(series["metric"])]
        wrong.extend(f"{query.place}: {labels} has not all of {named}" for labels in nameless)
        wrong.extend(_same_names(query, found))
    assert not wrong, "\n".join(wrong)


def _same_names(query: Query, found: list[Json]) -> list[str]:
    """Series of one query that a legend would show under one name."""
    legend = query.target.get("legendFormat")
    if not legend or query.panel is None or query.panel["type"] == "table":
        return []
    shown = [
        re.sub(r"{{\s*(\w+)\s*}}", lambda label: series["metric"].get(label[1], ""), legend)  # noqa: B023
        for series in found
    ]
    twice = {name for name in shown if shown.count(name) > 1}
    return [f"{query.place}: several series are called {name!r}" for name in sorted(twice)]


def _may_be_empty(query: Query) -> bool:
    described = (query.panel or {}).get("description", "")
    return "Empty unless" in described or any(name in query.expr for name in MAY_BE_EMPTY)


@pytest.mark.parametrize("file", DASHBOARDS)
def test_every_variable_offers_what_there_is(source: Source, file: str) -> None:
    """The variables of a dashboard find jobs, runs and ranks, runs that ended included."""
    known: dict[str, str] = dict.fromkeys(("job", "run", "rank", "instance", "gpu"), ".+")
    for one in variables(DASHBOARDS[file]):
        if one["type"] != "query":
            continue
        query = one["query"]
        text = query["query"] if isinstance(query, dict) else query
        offered = source.label_values(text, known)
        assert offered, one["name"]
        if one["name"] == "run":
            assert set(offered) == {BROKEN, *[demo.run for demo in DEMOS]}


def test_a_nan_is_no_old_number(source: Source) -> None:
    """The stat of the loss of a run that broke gives NaN, and not its last good number."""
    [query] = [
        query
        for query in queries(DASHBOARDS["training-run.json"])
        if query.panel and query.panel["type"] == "stat" and "training_loss{" in query.expr
    ]
    values = _chosen(DASHBOARDS["training-run.json"], {"run": BROKEN})
    [series] = source.ask(query, values)
    assert series["value"][1] == "NaN"
