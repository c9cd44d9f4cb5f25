# SPDX-License-Identifier: Apache-2.0
"""An alert is a set: a rule, a test in which it fires, one in which it does not, and a runbook.

promtool checks none of that: it takes any name for a metric, and a misspelt alert in a silent case
for a success. Routes are in test_alertmanager.py.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.alert_rules import cases, matchers, metric_of, names, queries, rules_of, series_fed
from tests.conftest import ROOT
from training_exporter.catalog import (
    ANOMALY_KINDS,
    COMMON_LABELS,
    NON_FINITE,
    WATCHED_SIGNALS,
    XIDS,
    runbook,
)

Rule = dict[str, Any]
RULES = rules_of("alerts.yml")
ALERTS = {rule["alert"]: rule for rule in RULES}
RECORDING = rules_of("recording.yml")
RECORDED = {rule["record"] for rule in RECORDING}
CASES = list(cases())
FIRING = {name for name, case in CASES if case.get("exp_alerts")}
SILENT = {name for name, case in CASES if not case.get("exp_alerts")}
DETECTED = {
    rule["alert"]: kinds.pop()
    for rule in RULES
    if (kinds := {m.value for m in matchers(rule["expr"]) if m.label == "kind"})
}
"""Alert -> the kind of anomaly that it tells."""
ENDED = {
    "TrainingCrashed": "crashed",
    "TrainingCompleted": "completed",
    "TrainingStopped": "stopped",
}
"""Alert -> the final state that it tells."""
TARGET_LABELS = {"job", "instance"}
LABELS = {
    "severity": {"critical", "warning", "info"},
    "component": {"training", "hardware", "exporter"},
    "lifecycle": {"event", "state"},
}
ANNOTATIONS = {"summary", "description", "cause", "action", "runbook_url", "dashboard_url"}
PAGE = "https://github.com/training-exporter/training-exporter/blob/main/docs/runbooks.md"
HEADINGS = set(re.findall(r"^## (\w+)$", (ROOT / "docs" / "runbooks.md").read_text(), re.MULTILINE))
SECONDS = {"s": 1, "m": 60, "h": 3600}
SHORTEST_WINDOW = 20
"""Four scrapes: fewer leave rate() and increase() with one sample when a scrape is lost."""

EACH = pytest.mark.parametrize("rule", RULES, ids=list(ALERTS))
EVERY = pytest.mark.parametrize(
    "rule", [*RULES, *RECORDING], ids=[*ALERTS, *(rule["record"] for rule in RECORDING)]
)


def test_names_of_alerts_are_unique() -> None:
    """promtool mentions duplicates, and succeeds."""
    assert len(ALERTS) == len(RULES)


def test_every_alert_is_seen_firing_and_silent() -> None:
    """And tests name no alert that does not exist."""
    assert set(ALERTS) == FIRING
    assert set(ALERTS) == SILENT


def test_alerts_carry_the_run_and_nothing_that_would_tell_them_apart_further() -> None:
    """A rank or an instance among the labels would be a message each."""
    expected = [alert["exp_labels"] for _, case in CASES for alert in case.get("exp_alerts", ())]

    assert [labels for labels in expected if labels.keys() != {"run", *LABELS}] == []


@EACH
def test_labels_are_of_closed_sets(rule: Rule) -> None:
    """Routes match on them."""
    assert rule["labels"].keys() == LABELS.keys()
    assert [key for key, value in rule["labels"].items() if value not in LABELS[key]] == []


@EACH
def test_annotations_are_complete(rule: Rule) -> None:
    """The message is made of them, and each names the run it is about."""
    texts = rule["annotations"]

    assert texts.keys() == ANNOTATIONS
    assert all(text.strip() for text in texts.values())
    assert "{{ $labels.run }}" in texts["summary"]
    assert texts["description"].startswith("Run {{ $labels.run }}")
    assert texts["dashboard_url"].endswith("?var-run={{ $labels.run | urlquery }}")


@EACH
def test_the_runbook_exists(rule: Rule) -> None:
    """Under the anchor that GitHub makes of its heading."""
    assert rule["annotations"]["runbook_url"] == f"{PAGE}#{rule['alert'].lower()}"
    assert rule["alert"] in HEADINGS


@pytest.mark.parametrize("kind", ANOMALY_KINDS)
def test_each_kind_has_the_runbook_of_an_alert_on_it(kind: str) -> None:
    """To which the page and the messages of webhooks lead."""
    (rule,) = [rule for rule in RULES if rule["annotations"]["runbook_url"] == runbook(kind)]

    assert any(f'"{kind}"' in query for query in queries(rule))


@EVERY
def test_metrics_are_in_the_catalogue(rule: Rule) -> None:
    """Or recorded by a rule of ours."""
    used = names(" ".join(queries(rule)))

    assert {name for name in used - RECORDED if metric_of(name) is None} == set()


@EVERY
def test_labels_and_their_values_are_those_of_the_metric(rule: Rule) -> None:
    """A misspelt value matches nothing, for ever."""
    assert _unknown_matchers(" ".join(queries(rule))) == []


def test_tests_feed_series_that_exist() -> None:
    """A test that feeds what nobody exports shows nothing."""
    fed = " ".join(series_fed())

    assert {name for name in names(fed) if metric_of(name) is None} == set()
    assert _unknown_matchers(fed) == []


def _unknown_matchers(text: str) -> list[str]:
    return [
        f"{metric.name}{{{found.label}={value!r}}}"
        for found in matchers(text)
        if (metric := metric_of(found.metric)) is not None
        for value in found.value.split("|")
        if found.label not in {*COMMON_LABELS, *TARGET_LABELS, *metric.labels}
        or value not in metric.values.get(found.label, (value,))
    ]


def test_every_kind_of_anomaly_has_an_alert() -> None:
    """non_finite has several, by the signal that was not finite."""
    found = [match for rule in RULES for match in matchers(rule["expr"])]
    kinds = {match.value for match in found if match.label == "kind"}
    signals = {match.value for match in found if match.label == "signal"}

    assert kinds == set(ANOMALY_KINDS) - {NON_FINITE}
    assert signals == set(WATCHED_SIGNALS)


def test_what_detectors_find_is_told_alike() -> None:
    """These blocks are written out for each kind; what is mended in one is to be mended in all."""
    assert set(DETECTED.values()) == set(ANOMALY_KINDS) - {NON_FINITE}
    assert len({_pattern(ALERTS[name]["annotations"]["description"]) for name in DETECTED}) == 1
    for lifecycle in LABELS["lifecycle"]:
        rules = [ALERTS[name] for name in DETECTED if lifecycle in ALERTS[name]["labels"].values()]
        assert len(rules) > 1
        assert len({_pattern(rule["expr"]) for rule in rules}) == 1


def test_ends_of_a_run_are_told_alike() -> None:
    """But for the state."""
    assert len({_pattern(ALERTS[name]["expr"]) for name in ENDED}) == 1
    assert len({_pattern(ALERTS[name]["annotations"]["description"]) for name in ENDED}) == 1


def _pattern(text: str) -> str:
    """The text without its kind, state and alert, and without the words around an anomaly's value
    and threshold."""
    for word in {*DETECTED, *DETECTED.values(), *ENDED.values()}:
        text = text.replace(f'"{word}"', '"..."')
    return re.sub(
        r"(training_anomaly_last_(?:value|threshold)\{[^`]*`[^}]*\| query \}\}).*?\{\{ end \}\}",
        r"\1...",
        text,
    )


def test_every_xid_belongs_to_one_alert() -> None:
    """A code that is counted is told, as critical or as a warning."""
    told = [
        set(match.value.split("|"))
        for name in ("TrainingGpuXidCritical", "TrainingGpuXidWarning")
        for match in matchers(ALERTS[name]["expr"])
    ]
    critical, warning = told[0], told[-1]

    assert all(codes in (critical, warning) for codes in told)
    assert critical | warning == set(XIDS)
    assert critical & warning == set()


@EACH
def test_states_outlive_the_process_and_events_end_by_themselves(rule: Rule) -> None:
    """The memory of a state is its own name among the firing alerts."""
    remembered = {match.value for match in matchers(rule["expr"]) if match.label == "alertname"}
    state = rule["labels"]["lifecycle"] == "state"

    assert remembered == ({rule["alert"]} if state else set())


@EACH
def test_critical_alerts_are_evaluated_most_often(rule: Rule) -> None:
    """Their delay is the scrape interval and that of their group."""
    assert (rule["interval"] == "2s") == (rule["labels"]["severity"] == "critical")


@EVERY
def test_expressions_are_robust(rule: Rule) -> None:
    """No choice of a job, no topk (its members change), no pattern where a word would do, no short
    window, and rates of counters only."""
    expression = rule["expr"]
    found = matchers(expression)
    windows = re.findall(r"\[(\d+)([smh])\](?! offset)", expression)
    rated = re.findall(r"\b(?:rate|increase)\((\w+)", expression)

    assert [match for match in found if match.label == "job"] == []
    assert "topk" not in expression
    assert [match for match in found if "~" in match.operator and "|" not in match.value] == []
    assert [n + unit for n, unit in windows if int(n) * SECONDS[unit] < SHORTEST_WINDOW] == []
    kinds = [metric.kind for metric in map(metric_of, rated) if metric is not None]
    assert len(kinds) == len(rated)
    assert set(kinds) <= {"counter", "histogram"}
