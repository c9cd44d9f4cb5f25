# SPDX-License-Identifier: Apache-2.0
"""A dashboard's JSON, walked: its panels, queries and variables."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "grafana" / "dashboards"

Json = dict[str, Any]

BUILT_IN = re.compile(r"^(__.*|timeFilter)$")
_VARIABLE = re.compile(r"\$\{(\w+)(?:[.:][^}]*)?\}|\$(\w+)|\[\[(\w+)\]\]")


class Query(NamedTuple):
    """A query of Prometheus, and where it stands.

    Attributes:
        place: for messages.
        expr: PromQL with Grafana's variables in it.
        target: the whole of its JSON.
        panel: the panel it belongs to, None for one of an annotation.
    """

    place: str
    expr: str
    target: Json
    panel: Json | None


def load_all() -> dict[str, Json]:
    """The committed dashboards by file name."""
    return {path.name: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}


def all_panels(dashboard: Json) -> Iterator[Json]:
    """Rows and panels, those in collapsed rows included."""
    for panel in dashboard.get("panels", []):
        yield panel
        yield from panel.get("panels") or []


def panels(dashboard: Json) -> Iterator[Json]:
    """Panels that draw something."""
    return (panel for panel in all_panels(dashboard) if panel.get("type") != "row")


def name_of(panel: Json) -> str:
    return f"panel {panel.get('title') or panel.get('id')!r}"


def variables(dashboard: Json) -> list[Json]:
    found: list[Json] = dashboard.get("templating", {}).get("list", [])
    return found


def annotations(dashboard: Json) -> list[Json]:
    found: list[Json] = dashboard.get("annotations", {}).get("list", [])
    return found


def queries(dashboard: Json) -> Iterator[Query]:
    """The queries of panels and annotations."""
    for panel in panels(dashboard):
        for target in panel.get("targets", []):
            place = f"{name_of(panel)}, query {target.get('refId')}"
            yield Query(place, target.get("expr", ""), target, panel)
    for annotation in annotations(dashboard):
        target = annotation.get("target") or {}
        if "expr" in target:
            yield Query(f"annotation {annotation.get('name')!r}", target["expr"], target, None)


def variables_in(text: object) -> set[str]:
    """Names of Grafana's variables in a text."""
    return {next(filter(None, found)) for found in _VARIABLE.findall(str(text))}


def texts(value: object) -> Iterator[str]:
    """Every text in a piece of JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from texts(one)
    elif isinstance(value, list):
        for one in value:
            yield from texts(one)
