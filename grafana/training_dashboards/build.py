# SPDX-License-Identifier: Apache-2.0
"""From a dashboard to the JSON that Grafana imports or is provisioned with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from grafana_foundation_sdk.builders import dashboard as dashboards
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as model

from training_dashboards.frame import Row
from training_dashboards.layout import arrange
from training_dashboards.queries import Selection
from training_dashboards.variables import variables

TAG: Final = "training-exporter"
"""What the dashboards have in common, by which they find each other."""

REFRESH: Final = "10s"
"""Two scrapes of the shipped Prometheus configuration."""


@dataclass(frozen=True, slots=True)
class Dashboard:
    """A dashboard before it is built.

    Attributes:
        uid: its address, and the name of its file; links of alerts point at it, so it stays.
        title: its name.
        description: what it is for, in a sentence.
        selection: what its variables choose.
        rows: its panels.
        annotations: its marks on the axis of time.
    """

    uid: str
    title: str
    description: str
    selection: Selection
    rows: Sequence[Row]
    annotations: Sequence[Builder[model.AnnotationQuery]] = ()

    def build(self) -> model.Dashboard:
        """Return it in Grafana's classic schema, which files can be provisioned in."""
        builder = (
            dashboards.Dashboard(self.title)
            .uid(self.uid)
            .description(self.description)
            .tags([TAG])
            .readonly()
            .refresh(REFRESH)
            .time("now-1h", "now")
            .timezone("browser")
            .tooltip(model.DashboardCursorSync.CROSSHAIR)
            .variables(variables(self.selection))
            .annotations(list(self.annotations))
            .link(_others())
        )
        built = builder.build()
        built.panels = list(arrange(self.rows))
        return _tidied(built)

    def json(self) -> str:
        """Return it as text that changes only where the dashboard does."""
        text = json.dumps(self.build(), cls=JSONEncoder, indent=2, sort_keys=True, allow_nan=False)
        return text + "\n"


def write(built: Sequence[Dashboard], folder: Path) -> list[Path]:
    """Write each dashboard to a file of its uid's name, and return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for dashboard in built:
        path = folder / f"{dashboard.uid}.json"
        path.write_text(dashboard.json(), encoding="utf-8")
        paths.append(path)
    return paths


def _others() -> dashboards.DashboardLink:
    """Return the menu of all dashboards with the tag, which keeps time and variables."""
    return (
        dashboards.DashboardLink("Training dashboards")
        .type(model.DashboardLinkType.DASHBOARDS)
        .tags([TAG])
        .as_dropdown(True)
        .keep_time(True)
        .include_vars(True)
    )


def _tidied(dashboard: model.Dashboard) -> model.Dashboard:
    """Take out what the SDK puts in unasked.

    Its `placement` would hide links and the switches of annotations in a menu, and `auto...` is for
    variables of another kind.
    """
    marks = dashboard.annotations.list_val if dashboard.annotations else None
    placed: list[Any] = [*(dashboard.links or []), *(marks or [])]
    for item in placed:
        item.placement = None
    chosen = dashboard.templating.list_val if dashboard.templating else None
    for variable in chosen or []:
        variable.auto = variable.auto_min = variable.auto_count = None
    return dashboard
