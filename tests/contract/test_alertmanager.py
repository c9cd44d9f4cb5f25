# SPDX-License-Identifier: Apache-2.0
"""What Alertmanager's own checks do not see: names that lead nowhere, secrets, and the cooldown."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from scripts.alertmanager_config import COMMITTED_SECRETS, load
from tests.conftest import ROOT

FOLDER = ROOT / "alertmanager"
CONFIG = load(FOLDER / "alertmanager.yml")
EXAMPLE = load(FOLDER / "examples" / "shared_alertmanager.yml")
BOTH = pytest.mark.parametrize("config", [CONFIG, EXAMPLE], ids=["shipped", "example"])

RULES = [
    rule
    for group in load(FOLDER / "rules" / "alerts.yml")["groups"]
    for rule in group["rules"]
    if "alert" in rule
]
ALERTS = {rule["alert"] for rule in RULES}
LABELS = {name: {rule["labels"][name] for rule in RULES} for name in RULES[0]["labels"]}

TEMPLATES = "".join(path.read_text() for path in sorted(FOLDER.glob("templates/*.tmpl")))
EVENT_LIFETIME_SECONDS = 300
EVENT, STATE, INFO = "training-event", "training-state", "training-info"
SECONDS = {"s": 1, "m": 60, "h": 3600}


def routes(route: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A route and all below it."""
    yield route
    for child in route.get("routes", []):
        yield from routes(child)


def strings(value: Any) -> Iterator[tuple[str, str]]:
    """Every text in a configuration with the key that it stands under."""
    pairs = value.items() if isinstance(value, dict) else [("", item) for item in value]
    for key, item in pairs:
        if isinstance(item, str):
            yield key, item
        elif isinstance(item, (dict, list)):
            yield from strings(item)


def matched(matchers: list[str]) -> Iterator[tuple[str, set[str]]]:
    """Label -> values of `label=~"one|another"`."""
    for matcher in matchers:
        label, values = re.fullmatch(r'(\w+)=~?"([\w|]+)"', matcher).groups()  # type: ignore[union-attr]
        yield label, set(values.split("|"))


def ours(config: dict[str, Any]) -> dict[str, Any]:
    """The route that all our alerts take."""
    mounted = (r for r in config["route"]["routes"] if r["receiver"] == STATE)
    return next(mounted)


def notifiers(config: dict[str, Any], receiver: str) -> list[dict[str, Any]]:
    """All of one receiver, of whatever kind."""
    found = next(one for one in config["receivers"] if one["name"] == receiver)
    return [n for key, value in found.items() if key.endswith("_configs") for n in value]


@BOTH
def test_routes_and_receivers_know_each_other(config: dict[str, Any]) -> None:
    """No receiver that nothing leads to."""
    used = {route["receiver"] for route in routes(config["route"])}

    assert used == {receiver["name"] for receiver in config["receivers"]}


def test_what_is_not_ours_is_told_to_nobody() -> None:
    """So the file may stand in a shared Alertmanager as a beginning."""
    assert notifiers(CONFIG, CONFIG["route"]["receiver"]) == []


@BOTH
def test_inhibitions_name_alerts_that_exist(config: dict[str, Any]) -> None:
    """In one run, and only values that the rules give."""
    known = {**LABELS, "alertname": ALERTS}

    for rule in config["inhibit_rules"]:
        assert rule["equal"] == ["run"]
        for label, values in matched([*rule["source_matchers"], *rule["target_matchers"]]):
            assert values <= known[label]


def alerts_that_match(matchers: list[str]) -> dict[str, str]:
    """Severity by name of the alerts that have all these labels."""
    wanted = list(matched(matchers))
    return {
        rule["alert"]: rule["labels"]["severity"]
        for rule in RULES
        if all({"alertname": rule["alert"], **rule["labels"]}[label] in v for label, v in wanted)
    }


def test_nobody_is_kept_from_being_called_by_what_calls_nobody() -> None:
    """Only a critical alert mutes a critical one."""
    for rule in CONFIG["inhibit_rules"]:
        muted = alerts_that_match(rule["target_matchers"])
        if "critical" in muted.values():
            assert set(alerts_that_match(rule["source_matchers"]).values()) == {"critical"}


def test_a_jump_at_a_resume_explains_the_spike_there() -> None:
    """One message about it is enough."""
    (muted,) = [
        alerts_that_match(rule["target_matchers"])
        for rule in CONFIG["inhibit_rules"]
        if "TrainingResumeJump" in alerts_that_match(rule["source_matchers"])
    ]

    assert muted == {"TrainingLossSpike": "warning"}


def test_every_label_of_the_rules_is_known_to_the_routes() -> None:
    """A new component, severity or lifecycle wants a decision here."""
    seen: dict[str, set[str]] = {}
    for route in routes(CONFIG["route"]):
        for label, values in matched(route.get("matchers", [])):
            seen.setdefault(label, set()).update(values)

    assert seen["component"] == LABELS["component"]
    assert seen["lifecycle"] == LABELS["lifecycle"]
    assert seen["severity"] == LABELS["severity"] - {"warning"}


def test_only_states_tell_their_end() -> None:
    """The end of an event says nothing."""
    for receiver, told in ((EVENT, False), (STATE, True), (INFO, False)):
        assert notifiers(CONFIG, receiver)
        assert {n["send_resolved"] for n in notifiers(CONFIG, receiver)} == {told}


def test_an_event_is_not_repeated_while_it_lives() -> None:
    """Else a single event would be told twice; and not much later, so that the cooldown is five
    minutes."""
    repeats = [
        int(route["repeat_interval"][:-1]) * SECONDS[route["repeat_interval"][-1]]
        for route in routes(CONFIG["route"])
        if route["receiver"] == EVENT
    ]

    assert min(repeats) > EVENT_LIFETIME_SECONDS
    assert min(repeats) <= EVENT_LIFETIME_SECONDS + 15


def test_templates_that_are_called_exist_and_are_called() -> None:
    """amtool check-config does not look."""
    defined = re.findall(r'define "([\w.]+)"', TEMPLATES)
    texts = [text for config in (CONFIG, EXAMPLE) for _, text in strings(config)]
    called = set(re.findall(r'template "([\w.]+)"', TEMPLATES + "".join(texts)))

    assert sorted(called) == sorted(defined)


@BOTH
def test_no_secret_is_in_the_file(config: dict[str, Any]) -> None:
    """Addresses of webhooks, passwords and tokens come from files below one folder."""
    secret = re.compile(r"(^|_)(url|password|token|secret|key|credentials)$")
    inline = [text for key, text in strings(config) if secret.search(key)]
    files = [text for key, text in strings(config) if key.endswith("_file")]

    assert [text for text in inline if not text.startswith("http://127.0.0.1:")] == []
    assert files
    assert all(file.startswith(f"{COMMITTED_SECRETS}/") for file in files)


def test_the_example_routes_as_the_shipped_file_does() -> None:
    """It shows how to mount our route below another; it must not stay behind."""
    inherited = {key: CONFIG["route"][key] for key in ("group_by", "group_wait", "group_interval")}

    assert ours(EXAMPLE) == {**inherited, **ours(CONFIG)}
    assert EXAMPLE["inhibit_rules"] == CONFIG["inhibit_rules"]
