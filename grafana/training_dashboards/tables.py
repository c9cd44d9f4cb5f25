# SPDX-License-Identifier: Apache-2.0
"""Tables of one row for each run or GPU, put together from one query for each column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from grafana_foundation_sdk.builders import common, dashboard
from grafana_foundation_sdk.builders import table as tables
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common as shared
from grafana_foundation_sdk.models import dashboard as model

from training_dashboards import palette
from training_dashboards.frame import NUMBER, About, as_table, framed, references, steps
from training_dashboards.mappings import NOT_FINITE, Mapping

EMPTY_CELL: Final = "-"
"""Where the panel's own words would say that there is nothing at all."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of numbers, and those of labels that come with its query.

    Attributes:
        title: its heading.
        query: PromQL; its labels are the table's keys and those in `labels`.
        unit: of its values; `None` for a query that is there for its labels only.
        labels: labels that are columns too, with their headings.
        mappings: words for values.
        width: in pixels; `None` shares what is left.
        bar: whether cells are bars from 0 to 1.
        bad_from: the value from which on it is red.
    """

    title: str
    query: str
    unit: str | None = NUMBER
    labels: tuple[tuple[str, str], ...] = ()
    mappings: Sequence[Mapping] = ()
    width: int | None = None
    bar: bool = False
    bad_from: float | None = None

    def properties(self) -> list[model.DynamicConfigValue]:
        """Return how its cells look."""
        found: dict[str, Any] = {"unit": self.unit, "noValue": EMPTY_CELL}
        if self.width is not None:
            found["custom.width"] = self.width
        if self.mappings:
            found["mappings"] = [*self.mappings, *NOT_FINITE]
        if self.bar:
            found |= {"min": 0, "max": 1, "custom.cellOptions": {"type": "gauge", "mode": "basic"}}
            found["color"] = {"mode": "fixed", "fixedColor": palette.USED}
        if self.bad_from is not None:
            found["thresholds"] = {
                "mode": "absolute",
                "steps": [
                    {"value": None, "color": palette.NEUTRAL},
                    {"value": self.bad_from, "color": palette.BAD},
                ],
            }
        return [model.DynamicConfigValue(id_val=key, value=value) for key, value in found.items()]


def table(
    about: About,
    keys: Sequence[tuple[str, str]],
    columns: Sequence[Column],
    links: dict[str, list[dict[str, Any]]],
    sort: tuple[str, bool],
) -> Builder[model.Panel]:
    """Return a table.

    Args:
        about: what it is for.
        keys: labels that tell rows apart, with their headings.
        columns: what is known of each; a row that a query does not have has an empty cell.
        links: data links by heading.
        sort: the heading to sort by, and whether from the greatest down.
    """
    heading, descending = sort
    by = common.TableSortByFieldState().display_name(heading).desc(descending)
    panel = (
        framed(tables.Panel(), about)
        .unit(NUMBER)
        .mappings(list(NOT_FINITE))
        .thresholds(steps())
        .color_scheme(dashboard.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
        .cell_options(shared.TableColorTextCellOptions())
        .filterable(True)
        .cell_height(shared.TableCellHeight.SM)
        .show_header(True)
        .sort_by([by])
        .transformations(_joined(keys, columns))
    )
    for ref, column in zip(references(), columns, strict=False):
        panel.with_target(as_table(column.query, ref))
        if column.unit is not None:
            panel.override_by_name(column.title, column.properties())
        for _, title in column.labels:
            unknown = model.DynamicConfigValue(id_val="noValue", value=EMPTY_CELL)
            panel.override_by_name(title, [unknown])
    for title, link in links.items():
        panel.override_by_name(title, [model.DynamicConfigValue(id_val="links", value=link)])
    return panel


def _joined(
    keys: Sequence[tuple[str, str]], columns: Sequence[Column]
) -> list[model.DataTransformerConfig]:
    """Return how one table is made of the queries' answers: rows of the same keys are one, and
    columns are named and put in order."""
    names = dict(keys)
    hidden = {"Time": True}
    for ref, column in zip(references(), columns, strict=False):
        names |= dict(column.labels)
        if column.unit is None:
            hidden[f"Value #{ref}"] = True
        else:
            names[f"Value #{ref}"] = column.title
    order = {name: at for at, name in enumerate(names)}
    return [
        model.DataTransformerConfig(id_val="merge", options={}),
        model.DataTransformerConfig(
            id_val="organize",
            options={"excludeByName": hidden, "indexByName": order, "renameByName": names},
        ),
    ]
