# SPDX-License-Identifier: Apache-2.0
"""Ways to spoil a dashboard, one for each rule of the lint, to show that the rule sees it."""

from __future__ import annotations

from collections.abc import Callable

from tests.dashboards.model import Json, annotations, panels, variables

Mutation = Callable[[Json], None]


def first(dashboard: Json, kind: str) -> Json:
    """The first panel of a kind."""
    return next(panel for panel in panels(dashboard) if panel["type"] == kind)


def _about_loss(dashboard: Json, kind: str) -> Json:
    return next(
        panel
        for panel in panels(dashboard)
        if panel["type"] == kind and "training_loss{" in panel["targets"][0].get("expr", "")
    )


def _query(dashboard: Json) -> Json:
    """A query that rates a counter."""
    return next(
        target
        for panel in panels(dashboard)
        for target in panel.get("targets", [])
        if "rate(" in target.get("expr", "") and panel["type"] == "timeseries"
    )


def _variable(dashboard: Json, name: str) -> Json:
    return next(one for one in variables(dashboard) if one["name"] == name)


def _set(find: Callable[[Json], Json], **values: object) -> Mutation:
    return lambda dashboard: find(dashboard).update(values)


def _replace(old: str, new: str) -> Mutation:
    def mutate(dashboard: Json) -> None:
        query = _query(dashboard)
        assert old in query["expr"], query["expr"]
        query["expr"] = query["expr"].replace(old, new)

    return mutate


def _panel(kind: str) -> Callable[[Json], Json]:
    return lambda dashboard: first(dashboard, kind)


def _defaults(kind: str) -> Callable[[Json], Json]:
    return lambda dashboard: first(dashboard, kind)["fieldConfig"]["defaults"]


def _dashboard(dashboard: Json) -> Json:
    return dashboard


def _as_first(key: str) -> Mutation:
    """Give the second panel what the first has."""

    def mutate(dashboard: Json) -> None:
        one, other = [panel for panel in dashboard["panels"] if panel["type"] != "row"][:2]
        other[key] = one[key]

    return mutate


def _crowd_strip(dashboard: Json) -> None:
    stat = first(dashboard, "stat")
    dashboard["panels"] = [{**stat, "id": 900 + n} for n in range(9)] + dashboard["panels"]


def _open_last_row(dashboard: Json) -> None:
    [*_, row] = [panel for panel in dashboard["panels"] if panel["type"] == "row"]
    row["collapsed"] = False


def _override(dashboard: Json) -> None:
    panel = first(dashboard, "timeseries")
    panel["fieldConfig"]["overrides"] = [
        {"matcher": {"id": "byName", "options": "x"}, "properties": [{"id": "colour", "value": 1}]}
    ]


def _two_names_of_one(dashboard: Json) -> None:
    targets = next(p["targets"] for p in panels(dashboard) if len(p.get("targets", [])) > 1)
    targets[1]["refId"] = targets[0]["refId"]


def _share_without_end(dashboard: Json) -> None:
    _defaults("timeseries")(dashboard).update({"unit": "percentunit", "max": None})


def _last_number(dashboard: Json) -> None:
    _about_loss(dashboard, "stat")["options"]["reduceOptions"]["calcs"] = ["lastNotNull"]


def _unnamed_columns(dashboard: Json) -> None:
    first(dashboard, "table")["transformations"] = []


def _table_over_range(dashboard: Json) -> None:
    first(dashboard, "table")["targets"][0].update({"instant": False, "range": True})


MUTATIONS: dict[str, Mutation] = {
    "D01 uid": _set(_dashboard, uid="training run"),
    "D02 no id and no version, which are the database's": _set(_dashboard, version=3),
    "D03 nothing that only the import dialogue resolves": _set(_dashboard, __inputs=[]),
    "D04 not editable": _set(_dashboard, editable=True),
    "D05 tags and a description": _set(_dashboard, tags=[]),
    "D06 time zone of the viewer or UTC": _set(_dashboard, timezone="Europe/Berlin"),
    "D07 one data source variable": _set(lambda d: _variable(d, "datasource"), name="prometheus"),
    "D08 links and annotation toggles stay in sight": _set(
        lambda d: annotations(d)[-1], placement="inControlsMenu"
    ),
    "D09 links keep time and variables": _set(
        lambda d: next(link for link in d["links"] if link["type"] == "dashboards"), keepTime=False
    ),
    "D10 panel ids, each once": _as_first("id"),
    "D11 panel titles, each once": _as_first("title"),
    "D14 no refresh more often than a scrape": _set(_dashboard, refresh="1s"),
    "V01 variables follow the time range": _set(lambda d: _variable(d, "run"), refresh=1),
    "V02 All means all": _set(lambda d: _variable(d, "run"), includeAll=True, allValue=None),
    "V03 variables ask the chosen data source": _set(
        lambda d: _variable(d, "run"), datasource={"type": "prometheus", "uid": "prometheus"}
    ),
    "V04 variables have a label": _set(lambda d: _variable(d, "run"), label=""),
    "V05 variables are used": lambda d: variables(d).append(
        {"name": "layer", "type": "custom", "label": "Layer"}
    ),
    "V06 variables follow those before them": _set(
        lambda d: _variable(d, "run"), query="label_values(training_state, run)"
    ),
    "V07 variables ask for metrics that there are": _set(
        lambda d: _variable(d, "job"), query="label_values(training_stat, job)"
    ),
    "T02 no variable that is not defined": _set(_panel("timeseries"), title="Loss of $model"),
    "L01 inside of the grid": lambda d: first(d, "stat")["gridPos"].update(x=23),
    "L02 nothing lies on something else": _as_first("gridPos"),
    "L03 what matters most comes first, and is no more than one can see at a glance": _crowd_strip,
    "L04 rows below the second are collapsed, so that they load when they are opened": (
        _open_last_row
    ),
    "P01 title, and a description that names the metric": _set(
        _panel("timeseries"), description="The loss."
    ),
    "P02 queries": _set(_panel("timeseries"), targets=[]),
    "P03 the chosen data source": _set(_panel("timeseries"), datasource={"uid": "prometheus"}),
    "P04 units that Grafana knows": _set(_defaults("timeseries"), unit="seconds"),
    "P05 shares end at 1": _share_without_end,
    "P06 reducers that Grafana knows": lambda d: first(d, "stat")["options"][
        "reduceOptions"
    ].update(calcs=["latest"]),
    "P07 a NaN is no old number": _last_number,
    "P08 transformations that Grafana knows": _set(
        _panel("timeseries"), transformations=[{"id": "organise", "options": {}}]
    ),
    "P09 colour modes that Grafana knows": _set(_defaults("timeseries"), color={"mode": "red"}),
    "P10 thresholds ascend from a base": _set(
        _defaults("timeseries"), thresholds={"steps": [{"value": 1, "color": "red"}]}
    ),
    "P11 timelines ask for no more points than they can draw": _set(
        _panel("state-timeline"), maxDataPoints=None
    ),
    "P12 overrides of properties that there are": _override,
    "P13 columns of tables have names for people": _unnamed_columns,
    "P14 several lines have a legend": lambda d: _legendless(d).update(showLegend=False),
    "P15 an empty panel says why": _set(_defaults("stat"), noValue=""),
    "T01 queries of a panel have names of their own": _two_names_of_one,
    "T03 at one moment or over a range, not both": _set(_query, instant=True, range=True),
    "T04 tables ask for tables of this moment": _table_over_range,
    "T05 series have names for people": _set(_query, legendFormat="__auto"),
    "T06 queries are PromQL": _set(_query, expr="rate(training_steps_total[1m)"),
    "T07 rates over the interval that fits the scrapes": _replace("$__rate_interval", "5m"),
    "T08 only what was chosen: job and run in every selector": _replace('run=~"$run"', 'run!=""'),
    "T09 several values are chosen by a pattern": _replace('run=~"$run"', 'run="$run"'),
    "T10 counters are read by their growth": _set(
        _query, expr='training_steps_total{job=~"$job",run=~"$run"}'
    ),
    "T11 metrics that there are": _set(_query, expr='training_lost{job=~"$job",run=~"$run"}'),
}


def _legendless(dashboard: Json) -> Json:
    legend: Json = next(
        panel["options"]["legend"]
        for panel in panels(dashboard)
        if panel["type"] == "timeseries" and len(panel["targets"]) > 1
    )
    return legend
