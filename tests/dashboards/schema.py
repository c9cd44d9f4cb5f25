# SPDX-License-Identifier: Apache-2.0
"""A dashboard's JSON held against Grafana's schema, as the types of grafana-foundation-sdk have it.

Reading it with the SDK and writing it again loses every key that the schema does not have. Types
are not looked at by that, so each value is compared with what its class is annotated with.
"""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterator
from enum import Enum
from typing import Any

from grafana_foundation_sdk.cog import variants
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models import prometheus

from tests.dashboards.model import Json, all_panels, name_of

register_default_plugins()

NOT_READABLE = (TypeError, KeyError, AttributeError, ValueError)


def offences(dashboard: Json) -> Iterator[str]:
    """What in a dashboard is not as Grafana's schema has it."""
    yield from _of_class(model.Dashboard, dashboard, "dashboard")
    for panel in all_panels(dashboard):
        for rule in panel.get("fieldConfig", {}).get("overrides", []):
            place = f"{name_of(panel)}, override of {rule['matcher'].get('options')!r}"
            yield from _of_class(model.Panel, _as_panel(panel, rule["properties"]), place)


def _as_panel(panel: Json, properties: list[Json]) -> Json:
    """A panel whose field config is what an override sets: `custom.lineWidth` is a key in a key."""
    config: Json = {}
    for changed in properties:
        *outer, last = changed["id"].split(".")
        inner = config
        for key in outer:
            inner = inner.setdefault(key, {})
        inner[last] = changed["value"]
    return {"type": panel["type"], "fieldConfig": {"defaults": config, "overrides": []}}


def _of_class(kind: Any, raw: object, place: str) -> Iterator[str]:
    """Faults of JSON that is to be a model."""
    try:
        read = kind.from_json(raw)
        written = json.loads(json.dumps(read, cls=JSONEncoder))
    except NOT_READABLE as error:
        yield f"{place}: no {kind.__name__}: {error!r}"
        return
    yield from _lost(raw, written, place)
    yield from _attributes(read, place)


def _lost(raw: object, written: object, place: str) -> Iterator[str]:
    """What of the JSON was not there any more, or was another, when it had been read."""
    if isinstance(raw, dict) and isinstance(written, dict):
        for key, value in raw.items():
            if key in written:
                yield from _lost(value, written[key], f"{place}.{key}")
            elif value is not None:
                yield f"{place}: unknown key {key!r}"
    elif isinstance(raw, list) and isinstance(written, list) and len(raw) == len(written):
        for at, (one, other) in enumerate(zip(raw, written, strict=True)):
            yield from _lost(one, other, f"{place}[{at}]")
    elif raw != written:
        yield f"{place}: {raw!r} is read as {written!r}"


def _attributes(read: object, place: str) -> Iterator[str]:
    """Faults of a model's values; those of a panel's own kind have types of their own."""
    for name, hint in typing.get_type_hints(type(read)).items():
        value, here = getattr(read, name), f"{place}.{name}"
        if name in {"options", "custom"} and isinstance(read, model.Panel | model.FieldConfig):
            if isinstance(value, dict):
                yield f"{here}: a kind of panel without a schema"
            elif value is not None:
                yield from _attributes(value, here)
        else:
            yield from _faults(hint, value, here)


def _faults(hint: Any, value: object, place: str) -> Iterator[str]:
    """Why a value is not of a type."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint in {object, Any}:
        return
    if origin in {typing.Union, types.UnionType}:
        yield from _of_union(parts, value, place)
    elif origin is typing.Literal:
        if value not in parts:
            yield _wrong(value, parts, place)
    elif origin is list:
        if not isinstance(value, list):
            yield _wrong(value, "a list", place)
            return
        for at, one in enumerate(value):
            yield from _faults(parts[0], one, f"{place}[{at}]")
    elif origin is dict:
        if not isinstance(value, dict):
            yield _wrong(value, "an object", place)
            return
        for key, one in value.items():
            yield from _faults(parts[1], one, f"{place}.{key}")
    elif hint is variants.Dataquery:
        if not isinstance(value, prometheus.Dataquery):
            yield _wrong(value, "a query of Prometheus", place)
            return
        yield from _attributes(value, place)
    elif isinstance(hint, type):
        yield from _of_type(hint, value, place)
    else:
        yield f"{place}: {hint} is a kind of type that this check does not know"


def _of_union(parts: tuple[Any, ...], value: object, place: str) -> Iterator[str]:
    if value is None and type(None) in parts:
        return
    tried = [list(_faults(part, value, place)) for part in parts if part is not type(None)]
    if all(tried):
        yield from max(tried, key=lambda found: len(found[0]))  # the one that went deepest


def _of_type(hint: type, value: object, place: str) -> Iterator[str]:
    if issubclass(hint, Enum):
        valid = [one.value for one in hint]
        if value not in valid or isinstance(value, bool):
            yield _wrong(value, valid, place)
    elif hint is float:
        if not isinstance(value, int | float) or isinstance(value, bool):
            yield _wrong(value, "a number", place)
    elif hint in {str, bool, int}:
        if not isinstance(value, hint) or isinstance(value, bool) is not (hint is bool):
            yield _wrong(value, hint.__name__, place)
    elif isinstance(value, hint):
        yield from _attributes(value, place)
    elif isinstance(value, dict):
        yield from _of_class(hint, value, place)
    else:
        yield _wrong(value, hint.__name__, place)


def _wrong(value: object, valid: object, place: str) -> str:
    return f"{place}: {value!r} is not {valid}"
