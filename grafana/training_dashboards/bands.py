# SPDX-License-Identifier: Apache-2.0
"""Panels with a row or a bar for each series: states over time, heatmaps, bars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from grafana_foundation_sdk.builders import bargauge, common, dashboard, heatmap
from grafana_foundation_sdk.builders import statetimeline as timelines
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common as shared
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models import heatmap as heat
from grafana_foundation_sdk.models import prometheus as queried

from training_dashboards.frame import (
    NUMBER,
    SHORT,
    About,
    framed,
    once,
    one_colour,
    over_time,
    steps,
)
from training_dashboards.mappings import NOT_FINITE, Mapping

TIMELINE_POINTS: Final = 400
HEATMAP_POINTS: Final = 200
THICKEST_BAR: Final = 32
"""Pixels; a bar that is alone would fill the panel."""


def timeline(
    about: About, query: str, name: str, mappings: Sequence[Mapping]
) -> Builder[model.Panel]:
    """Return states over time, a row for each series, in words and their colours."""
    return (
        framed(timelines.Panel(), about)
        .unit(SHORT)
        .mappings([*mappings, *NOT_FINITE])
        .thresholds(steps())
        .color_scheme(dashboard.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
        .max_data_points(TIMELINE_POINTS)
        .show_value(shared.VisibilityMode.NEVER)
        .merge_values(True)
        .fill_opacity(80)
        .line_width(0)
        .row_height(0.8)
        .disable_pagination()
        .legend(
            common.VizLegendOptions()
            .show_legend(True)
            .display_mode(shared.LegendDisplayMode.LIST)
            .placement(shared.LegendPlacement.BOTTOM)
        )
        .with_target(over_time(query, name))
    )


@dataclass(frozen=True, slots=True)
class Cells:
    """A heatmap's cells: their unit, the unit of the axis where that is a number, and the greatest
    value of the scale, `None` being that of the data. `buckets` says that the series are those of a
    histogram, and not one row each."""

    unit: str = NUMBER
    axis_unit: str | None = None
    most: float | None = None
    buckets: bool = False
    exponent: float = 0.5


def cells(about: About, query: str, name: str, look: Cells) -> Builder[model.Panel]:
    """Return a heatmap whose rows are the query's series, or a histogram's buckets."""
    target = over_time(query, name)
    if look.buckets:
        target.format(queried.PromQueryFormat.HEATMAP)
    colour = (
        heatmap.HeatmapColorOptions()
        .mode(heat.HeatmapColorMode.SCHEME)
        .scheme("Viridis")
        .scale(heat.HeatmapColorScale.EXPONENTIAL)
        .exponent(look.exponent)
        .steps(64)
    )
    axis = heatmap.YAxisConfig().axis_placement(shared.AxisPlacement.LEFT)
    if look.most is not None:
        colour.min(0).max(look.most)
    if look.axis_unit is not None:
        axis.unit(look.axis_unit)
    panel = (
        framed(heatmap.Panel(), about)
        .unit(look.unit)
        .calculate(False)
        .color(colour)
        .cell_values(heatmap.CellValues().unit(look.unit))
        .filter_values(heatmap.FilterValueRange().le(1e-9 if look.buckets else -1))
        .y_axis(axis)
        .cell_gap(1)
        .show_legend()
        .tooltip(
            heatmap.HeatmapTooltip()
            .mode(shared.TooltipDisplayMode.SINGLE)
            .show_color_scale(True)
            .y_histogram(False)
        )
        .max_data_points(HEATMAP_POINTS)
        .with_target(target)
    )
    if look.most is not None:
        panel.min(0).max(look.most)
    return panel


def bars(about: About, query: str, name: str, unit: str, colour: str) -> Builder[model.Panel]:
    """Return a bar for each series of the one point at the end of the time shown."""
    return (
        framed(bargauge.Panel(), about)
        .unit(unit)
        .min(0)
        .mappings(list(NOT_FINITE))
        .color_scheme(one_colour(colour))
        .orientation(shared.VizOrientation.HORIZONTAL)
        .sizing(shared.BarGaugeSizing.MANUAL)
        .max_viz_height(THICKEST_BAR)
        .display_mode(shared.BarGaugeDisplayMode.BASIC)
        .reduce_options(common.ReduceDataOptions().calcs(["last"]).fields("").values(False))
        .with_target(once(query, name))
    )
