# SPDX-License-Identifier: Apache-2.0
"""The Alertmanager configuration that runs, made from the one in the repository."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.alertmanager_config import (
    COMMITTED,
    SHARED,
    ConfigError,
    as_text,
    derive,
    load,
    notifier_names,
    parse_version,
    run,
    secrets_from_environment,
)

SLACK = "https://hooks.slack.example/services/T0/B0/token-of-slack"
DISCORD = "https://discord.example/api/webhooks/1/token-of-discord"
BOTH = {"SLACK_WEBHOOK_URL": SLACK, "DISCORD_WEBHOOK_URL": DISCORD}
COMMITTED_CONFIG = load(COMMITTED / "alertmanager.yml")


def derived(secrets: Path, **options: Any) -> dict[str, Any]:
    """The committed configuration for this folder of secrets."""
    return derive(COMMITTED_CONFIG, secrets=secrets, templates="/here/templates", **options)


def notifiers(config: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    """Those of one kind, of all receivers."""
    return [n for receiver in config["receivers"] for n in receiver.get(f"{kind}_configs", [])]


def names(config: dict[str, Any]) -> list[str]:
    """Of the receivers."""
    return [receiver["name"] for receiver in config["receivers"]]


def test_without_a_secret_the_receivers_stay_and_tell_nobody(tmp_path: Path) -> None:
    """Routes lead to them, so that alerts are on Alertmanager's page; nothing fails to be sent."""
    config = derived(tmp_path / "not there")

    assert names(config) == names(COMMITTED_CONFIG)
    assert notifier_names(config) == []


def test_an_empty_secret_is_none(tmp_path: Path) -> None:
    """As compose makes it of an empty variable."""
    (tmp_path / "slack_webhook_url").write_text("\n")
    (tmp_path / "discord_webhook_url").write_text(f"{DISCORD}\n")

    assert notifier_names(derived(tmp_path)) == ["discord"]


def test_paths_lead_to_the_given_folders(tmp_path: Path) -> None:
    """Of templates and of secrets, which a container sees under names of its own."""
    secrets_from_environment(BOTH, tmp_path)

    here = derived(tmp_path)
    contained = derived(tmp_path, secrets_as_seen="/run/secrets")

    assert here["templates"] == ["/here/templates/*.tmpl"]
    assert {n["api_url_file"] for n in notifiers(here, "slack")} == {
        f"{tmp_path}/slack_webhook_url"
    }
    assert {n["webhook_url_file"] for n in notifiers(contained, "discord")} == {
        "/run/secrets/discord_webhook_url"
    }


@pytest.mark.parametrize("version", [(0, 25, 0), (0, 27)])
def test_an_older_alertmanager_gets_the_text_of_what_it_cannot_read(
    tmp_path: Path, version: tuple[int, ...]
) -> None:
    """Discord's address in a file is obeyed from 0.28 on; Slack's always was."""
    secrets_from_environment(BOTH, tmp_path)

    text = as_text(derived(tmp_path, version=version))

    assert DISCORD in text
    assert "webhook_url_file" not in text
    assert SLACK not in text


def test_a_current_alertmanager_gets_no_secret_in_the_file(tmp_path: Path) -> None:
    """Both stay in files of their own."""
    secrets_from_environment(BOTH, tmp_path)

    text = as_text(derived(tmp_path, version=(0, 28)))

    assert "token-of" not in text


def test_nothing_else_changes(tmp_path: Path) -> None:
    """Routes, inhibitions and what a notifier says are the committed ones."""
    secrets_from_environment(BOTH, tmp_path)

    config = yaml.safe_load(as_text(derived(tmp_path)))

    assert {key: config[key] for key in ("route", "inhibit_rules")} == {
        key: COMMITTED_CONFIG[key] for key in ("route", "inhibit_rules")
    }
    for kind, secret in (("slack", "api_url_file"), ("discord", "webhook_url_file")):
        for now, before in zip(
            notifiers(config, kind), notifiers(COMMITTED_CONFIG, kind), strict=True
        ):
            assert {**now, secret: ""} == {**before, secret: ""}


def test_messages_link_to_grafana_where_it_is(tmp_path: Path) -> None:
    """By a definition before the texts of ours, which takes the place of the empty one."""
    secrets_from_environment(BOTH, tmp_path)
    grafana = "https://g.example.org/grafana"

    linked, plain = derived(tmp_path, grafana_url=f"{grafana}/"), derived(tmp_path)

    for kind, key in (("slack", "text"), ("discord", "message")):
        for with_link, without in zip(notifiers(linked, kind), notifiers(plain, kind), strict=True):
            assert with_link[key].startswith('{{ define "training.dashboard" }}')
            assert f'"{grafana}"' in with_link[key]
            assert with_link[key].endswith(without[key])
            assert {**with_link, key: ""} == {**without, key: ""}
    assert "example.org" not in as_text(plain)
    assert grafana not in as_text(COMMITTED_CONFIG)


@pytest.mark.parametrize("wrong", ["grafana:3000", 'https://g"}}x', "https://g/$1", "https://g|x"])
def test_what_is_no_address_of_grafana_is_refused(tmp_path: Path, wrong: str) -> None:
    """It becomes part of a template and of a link."""
    with pytest.raises(ConfigError, match=r"^--grafana-url is not an address: it "):
        derived(tmp_path, grafana_url=wrong)


def test_the_users_own_notifiers_are_kept(tmp_path: Path) -> None:
    """Whatever names no secret of ours, such as a webhook in the user's copy."""
    own = {"receivers": [{"name": "mine", "webhook_configs": [{"url": "http://localhost/x"}]}]}

    assert derive(own, secrets=tmp_path, templates="/t")["receivers"] == own["receivers"]


@pytest.mark.parametrize(("shared", "mode"), [(False, 0o600), (True, 0o644)])
def test_secrets_are_private_unless_shared(tmp_path: Path, shared: bool, mode: int) -> None:
    """0644 is for a container whose user is not ours."""
    written = secrets_from_environment(BOTH, tmp_path / "s", **({"mode": SHARED} if shared else {}))

    assert [path.name for path in written] == ["slack_webhook_url", "discord_webhook_url"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in written} == {mode}
    assert [path.name for path in (tmp_path / "s").iterdir() if path.name.startswith(".")] == []


def test_a_variable_that_is_unset_or_empty_leaves_its_file(tmp_path: Path) -> None:
    """Nothing is lost by starting the stack from another shell."""
    secrets_from_environment(BOTH, tmp_path)

    assert secrets_from_environment({"SLACK_WEBHOOK_URL": " "}, tmp_path) == []
    assert (tmp_path / "slack_webhook_url").read_text() == f"{SLACK}\n"


@pytest.mark.parametrize(
    "wrong", ["hush", "ftp://hush/x", "https:///hush", "https://a b/hush", "http://[hush"]
)
def test_what_is_no_address_is_refused_without_being_shown(tmp_path: Path, wrong: str) -> None:
    """Neither in the environment nor in a file; nothing is written before all is checked."""
    with pytest.raises(ConfigError, match=r"^DISCORD_WEBHOOK_URL is not an address") as refused:
        secrets_from_environment({**BOTH, "DISCORD_WEBHOOK_URL": wrong}, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert "hush" not in str(refused.value)

    (tmp_path / "slack_webhook_url").write_text(wrong)
    with pytest.raises(ConfigError, match=r"^slack_webhook_url is not an address") as refused:
        derived(tmp_path)
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("0.28", (0, 28)),
        ("v0.33.1", (0, 33, 1)),
        ("alertmanager, version 0.25.0 (branch: debian/sid, go: go1.19.8)", (0, 25, 0)),
    ],
)
def test_versions_are_read(text: str, version: tuple[int, ...]) -> None:
    """From an option and from what the program says of itself."""
    assert parse_version(text) == version


def test_what_is_no_version_is_refused() -> None:
    """With an example of one."""
    with pytest.raises(ConfigError, match=r"such as 0\.28\.1"):
        parse_version("latest")


def test_the_command_writes_secrets_and_configuration(tmp_path: Path) -> None:
    """The step that make and compose take, and the line it prints."""
    output = tmp_path / "alertmanager.yml"
    options = [f"--output={output}", f"--secrets={tmp_path / 's'}", "--from-environment"]

    said = run([*options, "--alertmanager-version=0.25.0"], {"DISCORD_WEBHOOK_URL": DISCORD})

    assert said == f"{output}: alerts go to discord"
    assert DISCORD in output.read_text()
    assert stat.S_IMODE(output.stat().st_mode) == 0o600


def test_the_command_says_when_nobody_is_told(tmp_path: Path) -> None:
    """Better now than at 3 a.m."""
    said = run([f"--output={tmp_path / 'a.yml'}", f"--secrets={tmp_path}"], {})

    assert said.endswith("alerts go to Alertmanager's page only (no secret is set)")


def test_a_file_that_is_no_configuration_is_one_line(tmp_path: Path) -> None:
    """With its name."""
    path = tmp_path / "x.yml"
    path.write_text("a: [")

    with pytest.raises(ConfigError, match=r"x\.yml cannot be used"):
        load(path)
