# SPDX-License-Identifier: Apache-2.0
"""The messages as a person reads them, and where each alert of the rules is sent."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from scripts.alertmanager_config import as_text, derive, load, secrets_from_environment, version_of
from tests.conftest import ROOT
from tests.e2e.alertmanager_process import (
    CONFIG,
    TEMPLATES,
    Alertmanager,
    alert,
    newer_alertmanager,
    running,
)
from tests.e2e.chat_server import Message

pytestmark = pytest.mark.e2e

EXAMPLE = ROOT / "alertmanager" / "examples" / "shared_alertmanager.yml"
HOSTILE = '*b* _i_ my_run `c` ~s~ <!here> @everyone &amp; <u|x> [t](u) |s| \\ "q" é'

SLACK_TEXT = """\
*TrainingLossSpike in run r1.*
rank 3, step 1234: loss 17.2, usual 2.1.
*Likely cause:* The learning rate is too high.
*Do now:* Look at the gradient norm.
<https://example.org/runbooks.md#traininglossspike|Runbook> · \
<http://localhost:9093/#/silences/new?filter=\
%7Balertname%3D%22TrainingLossSpike%22%2Crun%3D%22r1%22%7D|Silence>"""

DISCORD_TEXT = """\
**TrainingLossSpike in run r1.**
rank 3, step 1234: loss 17.2, usual 2.1.
**Likely cause:** The learning rate is too high.
**Do now:** Look at the gradient norm.
[Runbook](<https://example.org/runbooks.md#traininglossspike>) · \
[Silence](<http://localhost:9093/#/silences/new?filter=\
%7Balertname%3D%22TrainingLossSpike%22%2Crun%3D%22r1%22%7D>)"""

MAIL = """\
TrainingLossSpike in run r1.
rank 3, step 1234: loss 17.2, usual 2.1.

Likely cause: The learning rate is too high.
Do now: Look at the gradient norm.

Runbook:   https://example.org/runbooks.md#traininglossspike
Silence:   http://localhost:9093/#/silences/new?filter=\
%7Balertname%3D%22TrainingLossSpike%22%2Crun%3D%22r1%22%7D"""


@pytest.fixture(params=["installed", "newer"])
def programs(request: pytest.FixtureRequest, binary: Callable[[str], str]) -> tuple[str, str]:
    """Alertmanager and its amtool: Debian's, and the ones that NEWER_ALERTMANAGER names."""
    if request.param == "installed":
        return binary("prometheus-alertmanager"), binary("amtool")
    newer = newer_alertmanager()
    return newer, str(Path(newer).with_name("amtool"))


@pytest.fixture
def alertmanager(programs: tuple[str, str], tmp_path: Path) -> Iterator[Alertmanager]:
    """One that runs and tells a local chat server, which refuses nothing of it."""
    with running(programs[0], tmp_path) as one:
        yield one
    assert one.chat.refused == []


def told(alertmanager: Alertmanager, *alerts: dict[str, Any], count: int = 1) -> dict[str, Message]:
    """The last message of each service after so many."""
    alertmanager.post(*alerts, ends_in=1.2 if count == 2 else 30)
    messages = alertmanager.chat.wait(lambda messages: len(messages) >= 2 * count, 5)
    return {message.service: message for message in messages}


def test_a_message_says_what_where_why_and_what_to_do(alertmanager: Alertmanager) -> None:
    """Each in the syntax of its service, with the colour of its severity in Slack."""
    messages = told(alertmanager, alert("TrainingLossSpike", "r1"))

    slack, discord = messages["slack"], messages["discord"]
    assert slack.title == discord.title == "🟠 WARNING: TrainingLossSpike · r1"
    assert slack.text.rstrip() == SLACK_TEXT
    assert discord.text.rstrip() == DISCORD_TEXT
    assert slack.part["color"] == "#f57c00"
    assert slack.part["fallback"] == "WARNING: TrainingLossSpike in run r1."
    assert slack.part["title_link"] == "https://example.org/runbooks.md#traininglossspike"


def test_who_has_grafana_gets_a_link_to_the_dashboard(
    programs: tuple[str, str], tmp_path: Path
) -> None:
    """At the address that was given, below a path, and with whatever a run is named."""
    spike = alert("TrainingLossSpike", "r1")
    spike["annotations"]["dashboard_url"] += "%3C&from=now-1h"
    with running(programs[0], tmp_path, "https://g.example.org/grafana/") as alertmanager:
        messages = told(alertmanager, spike)

    page = "https://g.example.org/grafana/d/training-run?var-run=r1%3C"
    assert f"|Runbook> · <{page}&amp;from=now-1h|Dashboard> · <" in messages["slack"].text
    assert f">) · [Dashboard](<{page}&from=now-1h>) · [" in messages["discord"].text
    assert alertmanager.chat.refused == []


def test_the_end_says_how_long_it_lasted_and_where_to_look(alertmanager: Alertmanager) -> None:
    """And not what to do."""
    plateau = alert("TrainingLossPlateau", "r1", lifecycle="state")

    slack = told(alertmanager, plateau, count=2)["slack"]

    first, second, links = slack.text.rstrip().split("\n")
    assert first == "*TrainingLossPlateau in run r1.*"
    assert second == "Over after 1s."
    assert "|Runbook>" in links
    assert slack.part["color"] == "#2e7d32"


def test_a_hostile_run_name_neither_breaks_a_message_nor_calls_anybody(
    alertmanager: Alertmanager,
) -> None:
    """A run is named by its user, and everything may be in the name."""
    messages = told(alertmanager, alert("TrainingLossSpike", HOSTILE))

    slack, discord = messages["slack"], messages["discord"]
    shown = (
        "\u2217b\u2217 \uff3fi\uff3f my_run \u02cbc\u02cb \u223cs\u223c &lt;!here&gt; @everyone"
        ' &amp;amp; &lt;u|x&gt; [t](u) |s| \\ "q" é'
    )
    assert slack.text.split("\n")[0] == f"*TrainingLossSpike in run {shown}.*"
    assert without_links(slack.text).count("<") == 0
    assert "<" not in slack.title + slack.part["fallback"]

    shown = (
        r"\*b\* \_i\_ my\_run \`c\` \~s\~ \<!here> @" + "\u200b" + r"everyone &amp; \<u\|x>"
        r" \[t\](u) \|s\| \\ " + '"q" é'
    )
    assert discord.text.split("\n")[0] == f"**TrainingLossSpike in run {shown}.**"
    assert discord.title == f"🟠 WARNING: TrainingLossSpike · {shown}"
    assert discord.payload["content"] == ""
    assert [
        link for link in links_of(slack.text, discord.text) if re.search(r"[\s<>|()]", link)
    ] == []


def test_the_silence_link_silences_this_alert_of_this_run(alertmanager: Alertmanager) -> None:
    """Its filter, decoded as a browser does, is in the syntax of Alertmanager's matchers."""
    slack = told(alertmanager, alert("TrainingLossSpike", HOSTILE))["slack"]

    quoted = re.findall(r"filter=([^|]+)\|Silence>", slack.text)
    run = json.dumps(HOSTILE, ensure_ascii=False)
    assert [unquote(one) for one in quoted] == [f'{{alertname="TrainingLossSpike",run={run}}}']


def without_links(text: str) -> str:
    """A Slack text without its two links."""
    shorter, count = re.subn(r"<https?://[^<>|\s]+\|(Runbook|Silence)>", "", text)
    assert count == 2
    return shorter


def links_of(slack: str, discord: str) -> list[str]:
    """The addresses in both."""
    found = re.findall(r"<(https?:[^|]+)\|", slack) + re.findall(r"\]\(<(.+?)>\)", discord)
    assert len(found) == 4
    return found


def test_a_long_message_is_taken(alertmanager: Alertmanager) -> None:
    """Discord refuses more than 256 and 4096 characters, and Alertmanager 0.25 does not cut."""
    long = [alert("TrainingLossSpike", "_" * 300, rank=str(rank)) for rank in range(6)]
    for one in long:
        one["annotations"].update(dict.fromkeys(("summary", "description", "cause"), "*a " * 999))

    messages = told(alertmanager, *long)

    assert set(messages) == {"slack", "discord"}
    assert len(messages["slack"].text) < 3500
    assert messages["discord"].text.endswith("These are the first 5 of 6.")


def test_an_alert_without_annotations_is_readable(alertmanager: Alertmanager) -> None:
    """Somebody's own rule with our labels."""
    bare = {**alert("MyOwnAlert", "r1"), "annotations": {}}

    messages = told(alertmanager, bare)

    assert messages["discord"].title == "🟠 WARNING: MyOwnAlert · r1"
    assert messages["slack"].text.startswith("<http://localhost:9093/#/silences/new")
    assert messages["slack"].part["fallback"] == "WARNING: 🟠 WARNING: MyOwnAlert · r1"


def rendered(amtool: str, template: str, data: Path, templates: Path = TEMPLATES) -> str:
    """What amtool makes of a template."""
    command = [
        amtool, "template", "render", f"--template.glob={templates}/*.tmpl",
        f"--template.text={{{{ template {json.dumps(template)} . }}}}", f"--template.data={data}",
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout


def test_a_mail_is_plain_text(programs: tuple[str, str], tmp_path: Path) -> None:
    """With the same content; the line break of a run's name does not reach the subject."""
    one = {"status": "firing", **alert("TrainingLossSpike", "r1")}
    data = {
        "status": "firing",
        "alerts": [one],
        "commonLabels": one["labels"],
        "commonAnnotations": one["annotations"],
        "externalURL": "http://localhost:9093",
    }
    (tmp_path / "data.json").write_text(json.dumps(data))
    assert rendered(programs[1], "training.email.text", tmp_path / "data.json").strip() == MAIL

    one["labels"]["run"] = "r1\r\nBcc: x@example.org"
    (tmp_path / "data.json").write_text(json.dumps(data))
    subject = rendered(programs[1], "training.email.subject", tmp_path / "data.json").strip()
    assert subject == "🟠 WARNING: TrainingLossSpike · r1 Bcc: x@example.org"


def test_a_link_that_was_written_by_hand_is_in_the_mail(
    programs: tuple[str, str], tmp_path: Path
) -> None:
    """As the comment beside the empty definition says."""
    copy = Path(shutil.copytree(TEMPLATES, tmp_path / "templates"))
    common = (copy / "common.tmpl").read_text()
    define = '{{ define "training.dashboard" }}'
    link = next(line for line in common.splitlines() if "grafana.example.org" in line)
    assert f"{define}{{{{ end }}}}" in common
    (copy / "common.tmpl").write_text(common.replace(define, define + link.strip()))
    one = {"status": "firing", **alert("TrainingLossSpike", "r1")}
    (tmp_path / "data.json").write_text(json.dumps({"status": "firing", "alerts": [one]}))

    mail = rendered(programs[1], "training.email.text", tmp_path / "data.json", copy)

    assert "\nDashboard: https://grafana.example.org/d/training-run?var-run=r1\nSilence:" in mail


def test_every_alert_of_the_rules_reaches_its_receiver(
    programs: tuple[str, str], tmp_path: Path
) -> None:
    """By amtool, with the labels that the rule gives; nothing ends at the default receiver."""
    secrets_from_environment({"DISCORD_WEBHOOK_URL": "http://127.0.0.1/x"}, tmp_path)
    config = derive(
        load(CONFIG), secrets=tmp_path, templates=str(TEMPLATES), version=version_of(programs[0])
    )
    path = tmp_path / "alertmanager.yml"
    path.write_text(as_text(config))
    rules = load(ROOT / "alertmanager" / "rules" / "alerts.yml")["groups"]
    alerts = [rule for group in rules for rule in group["rules"] if "alert" in rule]

    check(programs[1], "check-config", str(path))
    for rule in alerts:
        labels = rule["labels"]
        expected = "info" if labels["severity"] == "info" else labels["lifecycle"]
        check(
            programs[1], "config", "routes", "test", f"--config.file={path}",
            f"--verify.receivers=training-{expected}", "run=r1", f"alertname={rule['alert']}",
            *(f"{label}={value}" for label, value in labels.items()),
        )  # fmt: skip
    assert len(alerts) > 30


def test_the_example_is_valid_and_pages_for_critical_alerts(programs: tuple[str, str]) -> None:
    """And others' alerts go where they went before."""
    test = ("config", "routes", "test", f"--config.file={EXAMPLE}")
    ours = ("component=training", "lifecycle=event", "run=r1")

    check(programs[1], "check-config", str(EXAMPLE))
    both = "--verify.receivers=training-pager,training-event"
    check(programs[1], *test, both, "severity=critical", *ours)
    check(programs[1], *test, "--verify.receivers=training-event", "severity=warning", *ours)
    check(programs[1], *test, "--verify.receivers=web-team", "team=web")
    check(programs[1], *test, "--verify.receivers=platform-team", "team=other")


def check(amtool: str, *arguments: str) -> None:
    """Runs amtool; a failure shows what it said."""
    result = subprocess.run([amtool, *arguments], capture_output=True, text=True, timeout=20)
    assert result.returncode == 0, (arguments, result.stdout, result.stderr)
