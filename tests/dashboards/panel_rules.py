# SPDX-License-Identifier: Apache-2.0
"""Rules about panels: what a person reads off them must be true and legible."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from grafana_foundation_sdk.models import units

from tests.dashboards.model import Json, name_of, panels
from tests.dashboards.rules import rule
from training_exporter.catalog import CATALOG

UNITS = {value for name, value in vars(units).items() if isinstance(value, str) and name[0] != "_"}
FREE_UNITS = ("suffix:", "prefix:", "si:", "count:", "time:", "currency:")
REDUCERS = {
    "last", "lastNotNull", "first", "firstNotNull", "min", "max", "mean", "sum", "count", "range",
    "delta", "step", "diff", "logmin", "allIsZero", "allIsNull", "changeCount", "distinctCount",
    "diffperc", "median", "variance", "stdDev", "allValues", "uniqueValues",
}  # fmt: skip
TRANSFORMERS = {
    "organize", "merge", "joinByField", "joinByLabels", "seriesToColumns", "seriesToRows",
    "labelsToFields", "filterFieldsByName", "filterByValue", "filterByRefId", "calculateField",
    "convertFieldType", "groupBy", "sortBy", "reduce", "renameByRegex", "partitionByValues",
    "limit", "rowsToFields", "configFromData", "prepareTimeSeries", "timeSeriesTable",
    "concatenate", "groupingToMatrix", "formatTime", "extractFields", "histogram", "transpose",
}  # fmt: skip
COLOUR_MODES = {
    "thresholds", "palette-classic", "palette-classic-by-name", "palette-colorblind", "fixed",
    "shades", "continuous-GrYlRd", "continuous-RdYlGr", "continuous-BlYlRd", "continuous-YlRd",
    "continuous-BlPu", "continuous-YlBl", "continuous-blues", "continuous-reds",
    "continuous-greens", "continuous-purples", "continuous-viridis", "continuous-magma",
    "continuous-plasma", "continuous-inferno", "continuous-cividis",
}  # fmt: skip
OVERRIDES = {
    "displayName", "unit", "decimals", "min", "max", "color", "mappings", "thresholds", "links",
    "noValue", "filterable", "description", "actions", "fieldMinMax", "custom.hideFrom",
}  # fmt: skip
"""Properties that an override may set, beside `custom.*` of the panel's own kind."""
CUSTOM_OVERRIDES = {
    "timeseries": {
        "drawStyle", "lineWidth", "lineStyle", "fillOpacity", "fillBelowTo", "gradientMode",
        "pointSize", "showPoints", "spanNulls", "axisPlacement", "axisLabel", "scaleDistribution",
        "stacking", "lineInterpolation", "thresholdsStyle", "axisColorMode", "barAlignment",
        "insertNulls", "transform", "axisWidth", "axisSoftMin", "axisSoftMax", "axisCenteredZero",
    },
    "table": {
        "width", "minWidth", "align", "cellOptions", "displayMode", "filterable", "inspect",
        "hidden", "wrapText",
    },
    "xychart": {
        "pointSize", "show", "lineWidth", "lineStyle", "pointColor", "lineColor", "axisPlacement",
        "axisLabel", "scaleDistribution", "pointShape", "pointStrokeWidth", "fillOpacity",
    },
    "state-timeline": {"lineWidth", "fillOpacity"},
    "status-history": {"lineWidth", "fillOpacity"},
}  # fmt: skip
MAY_BE_LAST_NUMBER = {"timeseries"}
NEEDS_POINT_LIMIT = {"state-timeline", "status-history"}
HAS_NO_UNIT = {"text", "state-timeline", "status-history", "table", "alertlist", "dashlist"}
BREAKS_BY_NAN = ("training_loss", "training_grad_norm", "training_eval_loss")


def field_config(panel: Json) -> Json:
    found: Json = panel.get("fieldConfig", {}).get("defaults", {})
    return found


def overrides(panel: Json) -> Iterator[Json]:
    for override in panel.get("fieldConfig", {}).get("overrides", []):
        yield from override.get("properties", [])


def _values_of(panel: Json, property_id: str) -> Iterator[Any]:
    """What the panel and its overrides set a property to."""
    if field_config(panel).get(property_id) is not None:
        yield field_config(panel)[property_id]
    yield from (one["value"] for one in overrides(panel) if one["id"] == property_id)


@rule("P01 title, and a description that names the metric")
def described(dashboard: Json) -> Iterator[str]:
    for panel in panels(dashboard):
        description = panel.get("description") or ""
        if not panel.get("title"):
            yield f"panel {panel.get('id')} has no title"
        if panel["type"] == "text":
            continue
        if "\n\nMetric" not in description:
            yield f"{name_of(panel)}: no sentence, blank line, and the metric's name"
        elif not any(f"`{name}`" in description for name in CATALOG) and "`up`" not in description:
            yield f"{name_of(panel)} names no metric of the catalogue"


@rule("P02 queries")
def has_queries(dashboard: Json) -> Iterator[str]:
    for panel in panels(dashboard):
        if panel["type"] != "text" and not panel.get("targets"):
            yield f"{name_of(panel)} asks nothing"


@rule("P03 the chosen data source")
def data_source(dashboard: Json) -> Iterator[str]:
    for panel in panels(dashboard):
        for one in (panel, *panel.get("targets", [])):
            source = one.get("datasource")
            if source is not None and source != {"type": "prometheus", "uid": "${datasource}"}:
                yield f"{name_of(panel)} asks {source!r}"
        if panel["type"] != "text" and panel.get("datasource") is None:
            yield f"{name_of(panel)} names no data source"


@rule("P04 units that Grafana knows")
def units_known(dashboard: Json) -> Iterator[str]:
    for panel in panels(dashboard):
        for unit in _values_of(panel, "unit"):
            if unit not in UNITS and not unit.startswith(FREE_UNITS):
                yield f"{name_of(panel)}: unit {unit!r}"
        has_one = field_config(panel).get("unit") or field_config(panel).get("mappings")
        if panel["type"] not in HAS_NO_UNIT and not has_one:
            yield f"{name_of(panel)} has no unit"


@rule("P05 shares end at 1")
def shares(dashboard: Json) -> Iterator[str]:
    for panel in panels(dashboard):
        if field_config(panel).get("unit") == "percentunit" and field_config(panel).get("max") != 1:
            yield f"{name_of(panel)} is a share, and its axis has no end"


def _reducers(panel: Json) -> Iterator[str]:
    options = panel.get("options", {})
    for part in ("reduceOptions", "legend"):
        yield from (options.get(part) or {}).get("calcs") or []


@rule("P06 reducers that Grafana knows")
def reducers(dashboard: Json) -> Iterator[str]:
    for panel in panels(dashboard):
        for name in _reducers(panel):
            if name not in REDUCERS:
                yield f"{name_of(panel)}: reducer {name!r}"


@rule("P07 a NaN is no old number")
def nan_is_shown(dashboard: Json) -> Iterator[str]:
    """`lastNotNull` passes over NaN, so a diverged loss would show its last good value."""
    for panel in panels(dashboard):
        asked = " ".join(target.get("expr", "") for target in panel.get("targets", []))
        if not any(name in asked for name in BREAKS_BY_NAN):
            continue
        if "lastNotNull" in _reducers(panel):
            yield f"{name_of(panel)} shows the last number in the place of a NaN"
        if panel["type"] == "stat" and not any(map(_maps_nan, _values_of(panel, "mappings"))):
            yield f"{name_of(panel)} does not say what a NaN looks like"


def _maps_nan(mappings: list[Json]) -> bool:
    return any(
        one.get("type") == "special" and "nan" in one["options"].get("match", "")
        for one in mappings
    )


@rule("P08 transformations that Grafana knows")
def transformations(dashboard: Json) -> Iterator[str]:
    for panel in panels(dashboard):
        for one in panel.get("transformations") or []:
            if one.get("id") not in TRANSFORMERS:
                yield f"{name_of(panel)}: transformation {one.get('id')!r}"


@rule("P09 colour modes that Grafana knows")
def colours(dashboard: Json) -> Iterator[str]:
    for panel in panels(dashboard):
        for colour in _values_of(panel, "color"):
            if colour.get("mode") not in COLOUR_MODES:
                yield f"{name_of(panel)}: colour mode {colour.get('mode')!r}"


@rule("P10 thresholds ascend from a base")
def thresholds(dashboard: Json) -> Iterator[str]:
    for panel in panels(dashboard):
        for one in _values_of(panel, "thresholds"):
            values = [step.get("value") for step in one.get("steps", [])]
            if not values or values[0] is not None or values[1:] != sorted(set(values[1:])):
                yield f"{name_of(panel)}: thresholds {values}"


@rule("P11 timelines ask for no more points than they can draw")
def point_limit(dashboard: Json) -> Iterator[str]:
    for panel in panels(dashboard):
        if panel["type"] in NEEDS_POINT_LIMIT and not panel.get("maxDataPoints"):
            yield f"{name_of(panel)} has no limit of points"


@rule("P12 overrides of properties that there are")
def override_properties(dashboard: Json) -> Iterator[str]:
    for panel in panels(dashboard):
        own = {f"custom.{name}" for name in CUSTOM_OVERRIDES.get(panel["type"], ())}
        for one in overrides(panel):
            if one["id"] not in OVERRIDES | own:
                yield f"{name_of(panel)}: override of {one['id']!r}"


@rule("P13 columns of tables have names for people")
def table_columns(dashboard: Json) -> Iterator[str]:
    for panel in panels(dashboard):
        if panel["type"] != "table":
            continue
        organize = [one for one in panel.get("transformations") or [] if one["id"] == "organize"]
        if not organize or not organize[-1]["options"].get("renameByName"):
            yield f"{name_of(panel)} shows the columns' raw names"


@rule("P14 several lines have a legend")
def legends(dashboard: Json) -> Iterator[str]:
    for panel in panels(dashboard):
        if panel["type"] not in {"timeseries", "xychart", "barchart"}:
            continue
        several = any("{{" in target.get("legendFormat", "") for target in panel.get("targets", []))
        shown = (panel["options"].get("legend") or {}).get("showLegend")
        if (several or len(panel.get("targets", [])) > 1) and not shown:
            yield f"{name_of(panel)} has several lines and no legend"


@rule("P15 an empty panel says why")
def no_value(dashboard: Json) -> Iterator[str]:
    for panel in panels(dashboard):
        if panel["type"] != "text" and not field_config(panel).get("noValue"):
            yield f"{name_of(panel)} says nothing when it has no data"
