# SPDX-License-Identifier: Apache-2.0
"""Variables: which data source, and which job, runs and ranks.

Their values are looked up in the time that the dashboard shows, again whenever that changes, so a
run that has ended stays in the list for as long as it is in sight.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from grafana_foundation_sdk.builders import dashboard as dashboards
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.common import DataSourceRef

from training_dashboards.queries import Selection
from training_exporter import catalog

PROMETHEUS: Final = DataSourceRef(type_val="prometheus", uid="${datasource}")
EVERYTHING: Final = ".+"
"""What "All" is sent as: shorter than a list of all values, and true of every series."""

_LABELS: Final = {"job": "Job", "run": "Run", "rank": "Rank"}
_NUMERIC: Final = {"rank"}


def variables(selection: Selection) -> list[Builder[model.VariableModel]]:
    """Return the data source and one variable for each label of the selection, in its order."""
    source = dashboards.DatasourceVariable("datasource").label("Data source").type("prometheus")
    return [source, *_chained(selection.variables)]


def _chained(names: Sequence[str]) -> list[Builder[model.VariableModel]]:
    """Return variables of which each offers what those before it leave."""
    return [_label_values(name, Selection(tuple(names[:at]))) for at, name in enumerate(names)]


def _label_values(name: str, before: Selection) -> Builder[model.VariableModel]:
    query = f"label_values({before.of(catalog.RUN_INFO).removesuffix('{}')}, {name})"
    numeric = name in _NUMERIC
    sort = model.VariableSort.NUMERICAL_ASC if numeric else model.VariableSort.ALPHABETICAL_ASC
    return (
        dashboards.QueryVariable(name)
        .label(_LABELS[name])
        .datasource(PROMETHEUS)
        .query({"qryType": 1, "query": query, "refId": f"Variable-{name}"})
        .definition(query)
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(sort)
        .multi(True)
        .include_all(True)
        .all_value(EVERYTHING)
    )
