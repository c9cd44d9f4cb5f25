# SPDX-License-Identifier: Apache-2.0
"""What every panel has, of whatever kind: its number and size, its words, its queries.

Each panel says what it shows in a sentence, names its metrics, and says in words when it has
nothing to show. Its id is given where it is made and never changes: links point at it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar

from grafana_foundation_sdk.builders import dashboard, prometheus
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common as shared
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models import prometheus as queried

from training_dashboards import palette
from training_dashboards.variables import PROMETHEUS
from training_exporter.catalog import Metric

NUMBER: Final = "none"
"""Three significant digits, as a loss or a learning rate needs; never with fixed decimals."""
SHORT: Final = "short"
SHARE: Final = "percentunit"
SECONDS: Final = "s"
BYTES: Final = "bytes"
TOKENS_PER_SECOND: Final = "si:tok/s"
WHEN: Final = "dateTimeFromNow"


@dataclass(frozen=True, slots=True)
class About:
    """What a panel is for.

    Attributes:
        id: its number, for good.
        title: what it shows.
        text: one sentence on what to read from it.
        metrics: the metrics it is made of.
        empty: what stands there when there is nothing to show.
        width: in 24ths of the page.
        height: in rows of Grafana's grid.
    """

    id: int
    title: str
    text: str
    metrics: Sequence[Metric]
    empty: str
    width: int = 12
    height: int = 8

    @property
    def description(self) -> str:
        """The sentence, a blank line, and the names of the metrics."""
        return f"{self.text}\n\nMetric: {', '.join(f'`{metric.name}`' for metric in self.metrics)}"


class _Framed(Protocol):
    """What the builders of all kinds of panel can do alike."""

    def id(self, id_val: int, /) -> Any: ...
    def title(self, title: str, /) -> Any: ...
    def description(self, description: str, /) -> Any: ...
    def datasource(self, datasource: shared.DataSourceRef, /) -> Any: ...
    def no_value(self, no_value: str, /) -> Any: ...
    def span(self, w: int, /) -> Any: ...
    def height(self, h: int, /) -> Any: ...


P = TypeVar("P", bound=_Framed)


def framed(panel: P, about: About) -> P:
    """Give a panel what every panel has."""
    panel.id(about.id)
    panel.title(about.title)
    panel.description(about.description)
    panel.datasource(PROMETHEUS)
    panel.no_value(about.empty)
    panel.span(about.width)
    panel.height(about.height)
    return panel


def over_time(query: str, name: str, ref: str = "A") -> prometheus.Dataquery:
    """Return a query of a point for each step of the time shown."""
    made = prometheus.Dataquery().expr(query).legend_format(name).ref_id(ref)
    return made.datasource(PROMETHEUS).format(queried.PromQueryFormat.TIME_SERIES).range()


def once(query: str, name: str, ref: str = "A") -> prometheus.Dataquery:
    """Return a query of the one point at the end of the time shown."""
    made = prometheus.Dataquery().expr(query).legend_format(name).ref_id(ref)
    return made.datasource(PROMETHEUS).format(queried.PromQueryFormat.TIME_SERIES).instant()


def as_table(query: str, ref: str) -> prometheus.Dataquery:
    """Return a query of one point whose labels become columns."""
    made = prometheus.Dataquery().expr(query).legend_format("__auto").ref_id(ref)
    return made.datasource(PROMETHEUS).format(queried.PromQueryFormat.TABLE).instant()


def references() -> Sequence[str]:
    """Return names for a panel's queries."""
    return "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def one_colour(colour: str) -> dashboard.FieldColor:
    """Return a colour that does not depend on the value."""
    return dashboard.FieldColor().mode(model.FieldColorModeId.FIXED).fixed_color(colour)


def steps(*later: tuple[float, str], base: str = palette.NEUTRAL) -> dashboard.ThresholdsConfig:
    """Return the colour from each value up, `base` below the first."""
    found = [model.Threshold(color=base)]
    found += [model.Threshold(value=value, color=colour) for value, colour in later]
    return dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(found)


@dataclass(frozen=True, slots=True)
class Row:
    """Panels that stand together.

    Attributes:
        id: its number, for good.
        title: its heading; without one the panels stand on top of the page.
        panels: what is in it, from left to right and from top to bottom.
        closed: whether its panels ask nothing before somebody opens it.
    """

    id: int
    title: str
    panels: Sequence[Builder[model.Panel]] = field(default_factory=tuple)
    closed: bool = True
