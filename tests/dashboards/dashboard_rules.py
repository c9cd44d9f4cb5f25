# SPDX-License-Identifier: Apache-2.0
"""Rules about a dashboard as a whole: its identity, links, variables and layout.

They hold what Grafana's own dashboard-linter asks for, and what its provisioning trips over.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from tests.dashboards.model import (
    BUILT_IN,
    Json,
    all_panels,
    annotations,
    name_of,
    panels,
    queries,
    texts,
    variables,
    variables_in,
)
from tests.dashboards.promql import error_in
from tests.dashboards.rules import rule
from training_exporter.catalog import CATALOG

COLUMNS = 24
MOST_IN_STRIP = 8
SCRAPE_SECONDS = 5
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _twice(names: Iterator[object]) -> list[object]:
    return [name for name, count in Counter(names).items() if count > 1]


@rule("D01 uid")
def uid(dashboard: Json) -> Iterator[str]:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", dashboard.get("uid") or ""):
        yield f"uid {dashboard.get('uid')!r} is not 1 to 40 letters, digits, - or _"


@rule("D02 no id and no version, which are the database's")
def no_identity_of_a_database(dashboard: Json) -> Iterator[str]:
    for key in ("id", "version"):
        if dashboard.get(key) is not None:
            yield f"has a {key}"


@rule("D03 nothing that only the import dialogue resolves")
def no_import_dialogue(dashboard: Json) -> Iterator[str]:
    for key in ("__inputs", "__requires"):
        if key in dashboard:
            yield f"has {key}"
    if any("${DS_" in text for text in texts(dashboard)):
        yield "has a ${DS_...} placeholder"


@rule("D04 not editable")
def uneditable(dashboard: Json) -> Iterator[str]:
    if dashboard.get("editable") is not False:
        yield "is editable, and the edit would be lost"


@rule("D05 tags and a description")
def described(dashboard: Json) -> Iterator[str]:
    for key in ("title", "description", "tags"):
        if not dashboard.get(key):
            yield f"has no {key}"


@rule("D06 time zone of the viewer or UTC")
def time_zone(dashboard: Json) -> Iterator[str]:
    if dashboard.get("timezone") not in ("browser", "utc"):
        yield f"time zone {dashboard.get('timezone')!r}"


@rule("D07 one data source variable")
def data_source_variable(dashboard: Json) -> Iterator[str]:
    sources = [one for one in variables(dashboard) if one.get("type") == "datasource"]
    if [one.get("name") for one in sources] != ["datasource"]:
        yield f"data source variables: {[one.get('name') for one in sources]}"
    elif sources[0].get("query") != "prometheus":
        yield "the data source variable lets one choose other than Prometheus"


@rule("D08 links and annotation toggles stay in sight")
def no_placement(dashboard: Json) -> Iterator[str]:
    for one in [*dashboard.get("links", []), *annotations(dashboard)]:
        if "placement" in one:
            yield f"{one.get('title') or one.get('name')!r} has a placement"


@rule("D09 links keep time and variables")
def links_keep_time(dashboard: Json) -> Iterator[str]:
    for link in dashboard.get("links", []):
        if link.get("type") == "dashboards" and not (
            link.get("keepTime") and link.get("includeVars")
        ):
            yield f"link {link.get('title')!r} loses time or variables"


@rule("D10 panel ids, each once")
def panel_ids(dashboard: Json) -> Iterator[str]:
    ids = [panel.get("id") for panel in all_panels(dashboard)]
    if None in ids:
        yield "a panel has no id"
    yield from (f"id {one} twice" for one in _twice(one for one in ids if one is not None))


@rule("D11 panel titles, each once")
def panel_titles(dashboard: Json) -> Iterator[str]:
    titles = (panel.get("title") for panel in panels(dashboard) if panel.get("title"))
    yield from (f"title {one!r} twice" for one in _twice(titles))


@rule("D14 no refresh more often than a scrape")
def refresh(dashboard: Json) -> Iterator[str]:
    found = re.fullmatch(r"(\d+)([smhd])", dashboard.get("refresh") or "1d")
    if found is None or int(found[1]) * _SECONDS[found[2]] < SCRAPE_SECONDS:
        yield f"refresh {dashboard.get('refresh')!r}"


@rule("V01 variables follow the time range")
def variables_reload(dashboard: Json) -> Iterator[str]:
    for one in variables(dashboard):
        if one.get("type") == "query" and one.get("refresh") != 2:
            yield f"variable {one['name']} does not reload when the time range changes"


@rule("V02 All means all")
def all_values(dashboard: Json) -> Iterator[str]:
    for one in variables(dashboard):
        if one.get("includeAll") and one.get("allValue") not in (".+", ".*"):
            yield f"variable {one['name']}: All lists every value"


@rule("V03 variables ask the chosen data source")
def variables_data_source(dashboard: Json) -> Iterator[str]:
    for one in variables(dashboard):
        source = one.get("datasource") or {}
        if one.get("type") == "query" and source.get("uid") != "${datasource}":
            yield f"variable {one['name']} asks {source!r}"


@rule("V04 variables have a label")
def variables_labelled(dashboard: Json) -> Iterator[str]:
    for one in variables(dashboard):
        if not one.get("label") and not one.get("hide"):
            yield f"variable {one['name']} has no label"


@rule("V05 variables are used")
def variables_used(dashboard: Json) -> Iterator[str]:
    for one in variables(dashboard):
        others = {**dashboard, "templating": [o for o in variables(dashboard) if o is not one]}
        if not any(one["name"] in variables_in(text) for text in texts(others)):
            yield f"variable {one['name']} is used nowhere"


def _query_text(variable: Json) -> str:
    query = variable.get("query")
    return query.get("query", "") if isinstance(query, dict) else str(query or "")


@rule("V06 variables follow those before them")
def variables_chained(dashboard: Json) -> Iterator[str]:
    before: list[str] = []
    for one in variables(dashboard):
        if one.get("type") == "query":
            missing = set(before) - variables_in(_query_text(one))
            if missing:
                yield f"variable {one['name']} ignores {', '.join(sorted(missing))}"
            before.append(one["name"])


@rule("V07 variables ask for metrics that there are")
def variables_metrics(dashboard: Json) -> Iterator[str]:
    for one in variables(dashboard):
        if one.get("type") != "query":
            continue
        names = re.findall(r"\btraining_\w+", _query_text(one).split("{")[0])
        if not names or not set(names) <= set(CATALOG):
            yield f"variable {one['name']} asks for {names}"


@rule("T02 no variable that is not defined")
def undefined_variables(dashboard: Json) -> Iterator[str]:
    known = {one["name"] for one in variables(dashboard)}
    for text in texts(dashboard):
        for name in variables_in(text) - known:
            if not BUILT_IN.match(name):
                yield f"${name} in {text!r}"


@rule("L01 inside of the grid")
def inside_grid(dashboard: Json) -> Iterator[str]:
    for panel in all_panels(dashboard):
        at = panel["gridPos"]
        if at["x"] < 0 or at["w"] < 1 or at["x"] + at["w"] > COLUMNS or at["h"] < 1:
            yield f"{name_of(panel)} at {at}"


@rule("L02 nothing lies on something else")
def no_overlap(dashboard: Json) -> Iterator[str]:
    taken: dict[tuple[int, int], str] = {}
    for panel in dashboard.get("panels", []):
        at = panel["gridPos"]
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                other = taken.setdefault((x, y), name_of(panel))
                if other != name_of(panel):
                    yield f"{name_of(panel)} lies on {other}"
                    return


@rule("L03 what matters most comes first, and is no more than one can see at a glance")
def strip(dashboard: Json) -> Iterator[str]:
    shown = [panel for panel in dashboard.get("panels", []) if panel["type"] != "row"]
    first = min((panel["gridPos"]["y"] for panel in shown), default=0)
    stats = [p for p in shown if p["gridPos"]["y"] == first and p["type"] == "stat"]
    if len(stats) > MOST_IN_STRIP:
        yield f"{len(stats)} stats in the first line"


@rule("L04 rows below the second are collapsed, so that they load when they are opened")
def rows_collapsed(dashboard: Json) -> Iterator[str]:
    rows = [panel for panel in dashboard.get("panels", []) if panel["type"] == "row"]
    for row in rows[2:]:
        if not row.get("collapsed"):
            yield f"row {row.get('title')!r} is open"


@rule("T06 queries are PromQL")
def queries_parse(dashboard: Json) -> Iterator[str]:
    for query in queries(dashboard):
        if (wrong := error_in(query.expr)) is not None:
            yield f"{query.place}: {wrong}"
