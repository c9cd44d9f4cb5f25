# SPDX-License-Identifier: Apache-2.0
"""The alert rules and their tests as Python sees them, for the contracts that hold over the set.

Expressions are taken apart by regular expressions: names and matchers are all that is looked for,
and promtool reads the language itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tests.conftest import ROOT
from training_exporter.catalog import CATALOG, Metric

FOLDER = ROOT / "alertmanager"
TEST_FILES = sorted((FOLDER / "tests").glob("*.test.yml"))

_QUOTED = r'"(?:[^"\\]|\\.)*"'
_NAME = re.compile(r"(?<![\w:])(?:\w+:)?training_\w+(?::\w+)*")
_SELECTOR = re.compile(rf'((?:\w+:)?\w+(?::\w+)?)\{{((?:[^"}}]|{_QUOTED})*)\}}')
_MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
_IN_TEMPLATE = re.compile(r"`([^`]*)`")


class Matcher(NamedTuple):
    """One condition of a selector: `metric{label operator "value"}`."""

    metric: str
    label: str
    operator: str
    value: str


def load(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    return content


def rules_of(name: str) -> list[dict[str, Any]]:
    """The rules of a file in alertmanager/rules, each with the `interval` of its group."""
    return [
        {"interval": group["interval"], **rule}
        for group in load(FOLDER / "rules" / name)["groups"]
        for rule in group["rules"]
    ]


def cases() -> Iterator[tuple[str, dict[str, Any]]]:
    """Each thing that a rule test expects, with the alert's name."""
    for path in TEST_FILES:
        for test in load(path)["tests"]:
            for case in test["alert_rule_test"]:
                yield case["alertname"], case


def series_fed() -> list[str]:
    """Every series that a rule test feeds."""
    return [
        series["series"]
        for path in TEST_FILES
        for test in load(path)["tests"]
        for series in test["input_series"]
    ]


def queries(rule: Mapping[str, Any]) -> list[str]:
    """All PromQL of a rule: its expression and the queries in its annotations."""
    return [rule["expr"], *_IN_TEMPLATE.findall(" ".join(rule.get("annotations", {}).values()))]


def names(text: str) -> set[str]:
    """Names of our metrics, and of what is recorded from them."""
    return set(_NAME.findall(text))


def matchers(text: str) -> list[Matcher]:
    """All matchers whose value is spelt out."""
    return [
        Matcher(metric, *found)
        for metric, inside in _SELECTOR.findall(text)
        for found in _MATCHER.findall(inside)
    ]


def metric_of(name: str) -> Metric | None:
    """The catalogue's metric to which a series name belongs, a histogram's parts included."""
    if name in CATALOG:
        return CATALOG[name]
    base = CATALOG.get(re.sub(r"_(bucket|count|sum)$", "", name))
    return base if base is not None and base.kind == "histogram" else None
