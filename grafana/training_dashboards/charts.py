# SPDX-License-Identifier: Apache-2.0
"""Numbers and curves, of which the dashboards have most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from grafana_foundation_sdk.builders import common, dashboard
from grafana_foundation_sdk.builders import stat as stats
from grafana_foundation_sdk.builders import timeseries as lines
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common as shared
from grafana_foundation_sdk.models import dashboard as model

from training_dashboards.frame import (
    NUMBER,
    SHARE,
    About,
    framed,
    once,
    over_time,
    references,
    steps,
)
from training_dashboards.mappings import NO_VALUE, NOT_FINITE, NOT_FINITE_OR_LOST, Mapping


def number(
    about: About,
    *values: tuple[str, str],
    unit: str = NUMBER,
    thresholds: dashboard.ThresholdsConfig | None = None,
    mappings: Sequence[Mapping] = (),
    names: bool = False,
    units: Sequence[str] = (),
) -> Builder[model.Panel]:
    """Return a stat of one point for each series of `(query, name)`.

    The point is the last one as it is: reducers that skip null would skip NaN with it, and show the
    last healthy loss of a run that has diverged.

    Args:
        about: what it is for.
        values: queries and the names of their series.
        unit: of the values.
        thresholds: colours by value; one neutral colour otherwise.
        mappings: words for values, beside those for NaN and Inf.
        names: whether names are shown even when there is one value only.
        units: one for each query, where they differ.
    """
    mode = shared.BigValueTextMode.VALUE_AND_NAME if names else shared.BigValueTextMode.AUTO
    panel = (
        framed(stats.Panel(), about)
        .unit(unit)
        .mappings([*mappings, *NOT_FINITE_OR_LOST])
        .thresholds(thresholds or steps())
        .color_scheme(dashboard.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
        .color_mode(shared.BigValueColorMode.VALUE)
        .graph_mode(shared.BigValueGraphMode.NONE)
        .text_mode(mode)
        .reduce_options(common.ReduceDataOptions().calcs(["last"]).fields("").values(False))
    )
    if unit == SHARE:
        panel.min(0).max(1)
    for ref, (query, name) in zip(references(), values, strict=False):
        panel.with_target(once(query, name, ref))
    for ref, other in zip(references(), units, strict=False):
        panel.override_by_query(ref, [model.DynamicConfigValue(id_val="unit", value=other)])
    return panel


@dataclass(frozen=True, slots=True)
class Curve:
    """A query, and how its series are drawn.

    Attributes:
        query: PromQL.
        name: legend of each of its series.
        colour: of the signal; several runs get shades of it. `None` is a colour for each name.
        width: of the line.
        fill: of the area below, in percent.
        dashed: for bounds.
        style: `line`, `points` or `bars`.
        unit: when it is not the panel's.
        right: whether it has the axis on the right.
    """

    query: str
    name: str
    colour: str | None = None
    width: int = 2
    fill: int = 0
    dashed: bool = False
    style: str = "line"
    unit: str | None = None
    right: bool = False

    def properties(self) -> list[model.DynamicConfigValue]:
        """Return what sets its series apart from the panel's others."""
        found: dict[str, Any] = {
            "custom.lineWidth": self.width,
            "custom.fillOpacity": self.fill,
            "custom.drawStyle": self.style,
        }
        if self.colour is not None:
            found["color"] = {"mode": "shades", "fixedColor": self.colour}
        if self.dashed:
            found["custom.lineStyle"] = {"fill": "dash", "dash": [8, 8]}
        if self.style == "points":
            found["custom.pointSize"] = 9
        if self.unit is not None:
            found["unit"] = self.unit
        if self.right:
            found["custom.axisPlacement"] = "right"
        return [model.DynamicConfigValue(id_val=key, value=value) for key, value in found.items()]


@dataclass(frozen=True, slots=True)
class Axis:
    """The vertical axis of curves: its unit, its least and greatest value, and whether it is
    logarithmic to some base, 0 meaning that it is not."""

    unit: str = NUMBER
    least: float | None = None
    most: float | None = None
    log: int = 0
    soft_least: float | None = None


SHARE_AXIS: Final = Axis(SHARE, least=0, most=1)
LINEAR: Final = Axis()


def curves(
    about: About, *drawn: Curve, axis: Axis = LINEAR, stacked: bool = False
) -> Builder[model.Panel]:
    """Return curves over time. A NaN is a gap, which the legend's last value tells of."""
    panel = (
        framed(lines.Panel(), about)
        .unit(axis.unit)
        .mappings([*NOT_FINITE, NO_VALUE])
        .color_scheme(dashboard.FieldColor().mode(model.FieldColorModeId.PALETTE_CLASSIC_BY_NAME))
        .show_points(shared.VisibilityMode.AUTO)
        .span_nulls(False)
        .legend(_legend())
        .tooltip(
            common.VizTooltipOptions()
            .mode(shared.TooltipDisplayMode.MULTI)
            .sort(shared.SortOrder.DESCENDING)
        )
    )
    if axis.least is not None:
        panel.min(axis.least)
    if axis.most is not None:
        panel.max(axis.most)
    if axis.soft_least is not None:
        panel.axis_soft_min(axis.soft_least)
    if axis.log:
        scale = common.ScaleDistributionConfig().type(shared.ScaleDistribution.LOG)
        panel.scale_distribution(scale.log(axis.log))
    if stacked:
        panel.stacking(common.StackingConfig().mode(shared.StackingMode.NORMAL).group("A"))
    for ref, curve in zip(references(), drawn, strict=False):
        panel.with_target(over_time(curve.query, curve.name, ref))
        panel.override_by_query(ref, curve.properties())
    return panel


def _legend() -> common.VizLegendOptions:
    return (
        common.VizLegendOptions()
        .show_legend(True)
        .display_mode(shared.LegendDisplayMode.TABLE)
        .placement(shared.LegendPlacement.BOTTOM)
        .calcs(["last", "min", "max"])
    )
