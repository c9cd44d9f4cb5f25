# SPDX-License-Identifier: Apache-2.0
"""The dashboards are what Grafana's schema says, and the check of that sees what is not."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest

from tests.dashboards.model import Json, annotations, load_all, variables
from tests.dashboards.mutations import first
from tests.dashboards.schema import offences

DASHBOARDS = load_all()


def _defaults(dashboard: Json, kind: str = "timeseries") -> Json:
    found: Json = first(dashboard, kind)["fieldConfig"]["defaults"]
    return found


def _override(dashboard: Json, key: str, value: object) -> None:
    """Change what the first override of the curves sets."""
    rule = first(dashboard, "timeseries")["fieldConfig"]["overrides"][0]
    rule["properties"].append({"id": key, "value": value})


SPOILT: dict[str, Callable[[Json], object]] = {
    "a key of a dashboard that there is not": lambda d: d.update(titel="x"),
    "a key of a panel that there is not": lambda d: first(d, "stat").update(hide=True),
    "an option that there is not": lambda d: first(d, "stat")["options"].update(graphMod="none"),
    "an option of another kind of panel": lambda d: first(d, "timeseries")["options"].update(
        textMode="auto"
    ),
    "a field option that there is not": lambda d: _defaults(d)["custom"].update(lineWide=2),
    "a key deep in an option": lambda d: first(d, "timeseries")["options"]["legend"].update(x=1),
    "a key of a query that there is not": lambda d: first(d, "stat")["targets"][0].update(q="up"),
    "a key of a variable that there is not": lambda d: variables(d)[1].update(multy=True),
    "a key of an annotation's query": lambda d: annotations(d)[0]["target"].update(query="up"),
    "a text for a number": lambda d: _defaults(d)["custom"].update(lineWidth="2"),
    "a number for a text": lambda d: first(d, "stat").update(title=3),
    "a text for a truth": lambda d: variables(d)[1].update(multi="true"),
    "a truth for a number": lambda d: first(d, "stat")["gridPos"].update(h=True),
    "a fraction for a whole number": lambda d: first(d, "stat")["gridPos"].update(w=2.5),
    "an object for a list": lambda d: d.update(tags={"training": True}),
    "a list for an object": lambda d: first(d, "stat").update(gridPos=[0, 0, 3, 4]),
    "a text among thresholds": lambda d: _defaults(d, "stat")["thresholds"]["steps"][0].update(
        value="low"
    ),
    "a colour mode that there is not": lambda d: _defaults(d).update(color={"mode": "rainbow"}),
    "an option's value that there is not": lambda d: first(d, "stat")["options"].update(
        textMode="loud"
    ),
    "a field option's value that there is not": lambda d: _defaults(d)["custom"].update(
        drawStyle="lines"
    ),
    "a mapping of a special value that there is not": lambda d: _defaults(d)["mappings"][0][
        "options"
    ].update(match="NaN"),
    "a refresh of a variable that there is not": lambda d: variables(d)[1].update(refresh=3),
    "a kind of panel that there is not": lambda d: first(d, "stat").update(type="graph"),
    "a query of another source": lambda d: first(d, "stat")["datasource"].update(type="loki"),
    "an override of an option that there is not": lambda d: _override(d, "custom.lineWide", 2),
    "an override of a wrong type": lambda d: _override(d, "custom.lineWidth", "2"),
    "an override of a value that there is not": lambda d: _override(d, "custom.drawStyle", "dots"),
    "an override of a standard option of a wrong type": lambda d: _override(d, "unit", 1),
}


@pytest.mark.parametrize("file", DASHBOARDS)
def test_schema(file: str) -> None:
    """A committed dashboard has only keys, types and values that Grafana's schema has."""
    assert not list(offences(DASHBOARDS[file]))


@pytest.mark.parametrize("name", SPOILT)
def test_the_check_sees(name: str) -> None:
    """A dashboard that is not as the schema has it is found out."""
    spoilt = copy.deepcopy(DASHBOARDS["training-run.json"])
    SPOILT[name](spoilt)
    assert list(offences(spoilt))
