# SPDX-License-Identifier: Apache-2.0
"""Rules about queries: what they ask for exists, and they ask for no more than was chosen."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import yaml

from tests.dashboards.model import ROOT, Json, Query, name_of, panels, queries, variables
from tests.dashboards.promql import Selector, selectors
from tests.dashboards.rules import rule
from training_exporter.catalog import CATALOG

RECORDING: Path = ROOT / "alertmanager" / "rules" / "recording.yml"
FOREIGN = {"up", "scrape_duration_seconds", "scrape_samples_scraped", "ALERTS"}
"""Series that Prometheus makes itself."""
OF_COUNTERS = {"rate", "irate", "increase", "changes", "resets"}
TOTALS_MAY_BE_SHOWN = {"last_over_time", "max_over_time"}


def recorded() -> set[str]:
    """Names that the recording rules make."""
    groups = yaml.safe_load(RECORDING.read_text())["groups"]
    return {each["record"] for group in groups for each in group["rules"]}


def _selectors(dashboard: Json) -> Iterator[tuple[Query, Selector]]:
    for query in queries(dashboard):
        try:
            found = selectors(query.expr)
        except ValueError:
            continue  # T06 says so
        yield from ((query, one) for one in found)


@rule("T01 queries of a panel have names of their own")
def ref_ids(dashboard: Json) -> Iterator[str]:
    for panel in panels(dashboard):
        names = [target.get("refId") for target in panel.get("targets", [])]
        if None in names or len(set(names)) < len(names):
            yield f"{name_of(panel)}: queries {names}"


@rule("T03 at one moment or over a range, not both")
def instant_or_range(dashboard: Json) -> Iterator[str]:
    for query in queries(dashboard):
        target = query.target
        if query.panel is not None and bool(target.get("instant")) == bool(target.get("range")):
            yield f"{query.place}: instant {target.get('instant')}, range {target.get('range')}"


@rule("T04 tables ask for tables of this moment")
def tables(dashboard: Json) -> Iterator[str]:
    for query in queries(dashboard):
        if query.panel is None or query.panel["type"] != "table":
            continue
        if query.target.get("format") != "table" or not query.target.get("instant"):
            yield f"{query.place} of a table"


@rule("T05 series have names for people")
def legend_formats(dashboard: Json) -> Iterator[str]:
    for query in queries(dashboard):
        is_drawn = query.panel is not None and query.panel["type"] in {
            "timeseries",
            "state-timeline",
        }
        if is_drawn and query.target.get("legendFormat") in (None, "", "__auto"):
            yield f"{query.place} has no name"


@rule("T07 rates over the interval that fits the scrapes")
def rate_interval(dashboard: Json) -> Iterator[str]:
    for query in queries(dashboard):
        for function, window in re.findall(
            r"\b(i?rate|increase)\([^\[\]]*\[([^\]]+)\]", query.expr
        ):
            if window not in ("$__rate_interval", "$__range"):
                yield f"{query.place}: {function} over {window}"


@rule("T08 only what was chosen: job and run in every selector")
def chosen(dashboard: Json) -> Iterator[str]:
    known = {one["name"] for one in variables(dashboard)}
    made = recorded()
    for query, selector in _selectors(dashboard):
        wanted = {"run"} if selector.metric in made else {"job", "run"}
        if selector.metric in FOREIGN:
            wanted = {"job"}
        for label in wanted & known:
            if (label, f"${label}") not in {(name, value) for name, _, value in selector.matchers}:
                yield f"{query.place}: {selector.metric} of any {label}"


@rule("T09 several values are chosen by a pattern")
def patterns(dashboard: Json) -> Iterator[str]:
    several = {f"${one['name']}" for one in variables(dashboard) if one.get("multi")}
    for query, selector in _selectors(dashboard):
        for name, operator, value in selector.matchers:
            if value in several and operator not in ("=~", "!~"):
                yield f"{query.place}: {name}{operator}{value}"


@rule("T10 counters are read by their growth")
def counters(dashboard: Json) -> Iterator[str]:
    for query, selector in _selectors(dashboard):
        metric = CATALOG.get(selector.metric)
        if metric is None:
            continue
        if metric.kind == "counter" and selector.function not in OF_COUNTERS | TOTALS_MAY_BE_SHOWN:
            yield f"{query.place}: {metric.name} is a counter"
        if metric.kind == "gauge" and selector.function in {"rate", "irate", "increase"}:
            yield f"{query.place}: {metric.name} is no counter"


@rule("T11 metrics that there are")
def metrics(dashboard: Json) -> Iterator[str]:
    made = recorded()
    for query, selector in _selectors(dashboard):
        base = re.sub(r"_(bucket|sum|count)$", "", selector.metric)
        histogram = CATALOG.get(base)
        is_part = histogram is not None and histogram.kind == "histogram"
        if selector.metric not in CATALOG.keys() | made | FOREIGN and not is_part:
            yield f"{query.place}: there is no {selector.metric!r}"
