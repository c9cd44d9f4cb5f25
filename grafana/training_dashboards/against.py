# SPDX-License-Identifier: Apache-2.0
"""Curves over something else than time: an XY chart of two queries.

Prometheus gives each of them as a table of time, run and value. `merge` joins rows of the same time
and run, which come from the same page of the exporter, so the step belongs to the loss.
`partitionByValues` makes a frame for each run, with the run as a label, and the chart, left to find
frames by itself, draws one curve for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from grafana_foundation_sdk.builders import common, dashboard, prometheus, xychart
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common as shared
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models import prometheus as queried
from grafana_foundation_sdk.models import xychart as xy

from training_dashboards.charts import Axis
from training_dashboards.frame import SHORT, About, framed
from training_dashboards.mappings import NOT_FINITE
from training_dashboards.variables import PROMETHEUS

POINTS: Final = 1000

_X: Final = "Value #A"
_Y: Final = "Value #B"
"""What Prometheus' data source calls the values of the two queries, whatever is shown of them."""

_LINEAR: Final = {"custom.scaleDistribution": {"type": "linear"}}


@dataclass(frozen=True, slots=True)
class Field:
    """What an axis shows: a query and the axis's name.

    Both queries of a chart have the same labels, by which their values are paired.
    """

    query: str
    name: str


def against(
    about: About, x: Field, y: Field, labels: Sequence[str], axis: Axis
) -> Builder[model.Panel]:
    """Return a curve of y over x for each set of values of the labels."""
    series = xychart.XYSeriesConfig()
    series.x(xychart.XychartXYSeriesConfigX().matcher(_named(_X)))
    series.y(xychart.XychartXYSeriesConfigY().matcher(_named(_Y)))
    panel = (
        framed(xychart.Panel(), about)
        .unit(axis.unit)
        .mappings(list(NOT_FINITE))
        .color_scheme(dashboard.FieldColor().mode(model.FieldColorModeId.PALETTE_CLASSIC_BY_NAME))
        .mapping(xy.SeriesMapping.AUTO)
        .series([series])
        .show(xy.XYShowMode.LINES)
        .line_width(2)
        .max_data_points(POINTS)
        .legend(
            common.VizLegendOptions()
            .show_legend(True)
            .display_mode(shared.LegendDisplayMode.LIST)
            .placement(shared.LegendPlacement.BOTTOM)
        )
        .tooltip(common.VizTooltipOptions().mode(shared.TooltipDisplayMode.SINGLE))
        .with_target(_long(x.query, labels, "A"))
        .with_target(_long(y.query, labels, "B"))
        .transformations(_paired(labels))
    )
    if axis.log:
        scale = common.ScaleDistributionConfig().type(shared.ScaleDistribution.LOG)
        panel.scale_distribution(scale.log(axis.log))
    run = " ".join(f"${{__field.labels.{label}}}" for label in labels)
    panel.override_by_name(_X, _properties(x.name, x.name, {"unit": SHORT, **_LINEAR}))
    panel.override_by_name(_Y, _properties(run, y.name, {}))
    return panel


def _properties(series: str, axis: str, others: dict[str, Any]) -> list[model.DynamicConfigValue]:
    """Return what a field's values are called in the legend and on the axis, and more."""
    values = {"displayName": series, "custom.axisLabel": axis, **others}
    return [model.DynamicConfigValue(id_val=key, value=value) for key, value in values.items()]


def _named(field: str) -> xychart.MatcherConfig:
    return xychart.MatcherConfig().id("byName").options(field)


def _long(query: str, labels: Sequence[str], ref: str) -> prometheus.Dataquery:
    """Return a query whose points are rows, with their labels as columns."""
    name = " ".join(f"{{{{{label}}}}}" for label in labels)
    made = prometheus.Dataquery().expr(query).legend_format(name).ref_id(ref)
    return made.datasource(PROMETHEUS).format(queried.PromQueryFormat.TABLE).range()


def _paired(labels: Sequence[str]) -> list[model.DataTransformerConfig]:
    return [
        model.DataTransformerConfig(id_val="merge", options={}),
        model.DataTransformerConfig(
            id_val="partitionByValues",
            options={"fields": list(labels), "keepFields": False, "naming": {"asLabels": True}},
        ),
    ]
