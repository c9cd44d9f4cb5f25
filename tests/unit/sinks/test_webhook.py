# SPDX-License-Identifier: Apache-2.0
"""The webhook sink: what it is given, and when it keeps quiet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from training_exporter.sinks import RunInfo, SinkTrouble, webhook
from training_exporter.sinks.webhook import WebhookSink
from training_exporter.snapshot import Anomaly
from training_exporter.status import ReportNote
from training_exporter.summary.making import RunSummary

SECRET = "https://example.org/hook/secret"
RUN = RunInfo("tiny", 0, {})
NOTE = ReportNote("loss", "loss NaN at step 7; likely cause: the data", "/runs/r.json", True)


def anomaly(kind: str = "loss_spike", step: int = 1) -> Anomaly:
    return Anomaly(kind, step, 100.0, 9.0, 2.0)


class Post:
    """Stands in for the network; its clock is set by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.posted: list[dict[str, Any]] = []
        self.failing = False
        monkeypatch.setattr(webhook, "deliver", self.deliver)

    def deliver(self, url: str, body: bytes, pause: object) -> None:
        assert url == SECRET
        if self.failing:
            raise SinkTrouble("nobody there")
        self.posted.append(json.loads(body))

    def sink(self, **settings: Any) -> WebhookSink:
        sink = WebhookSink(SECRET, clock=lambda: self.now, **settings)
        sink.start(RUN)
        self.posted.clear()
        return sink


@pytest.fixture
def post(monkeypatch: pytest.MonkeyPatch) -> Post:
    return Post(monkeypatch)


def test_one_message_of_a_kind_in_five_minutes(post: Post) -> None:
    """The next one says how many were held back; other kinds have a time of their own."""
    sink = post.sink()

    for now, kind in ((0, "loss_spike"), (1, "loss_spike"), (2, "restart"), (299, "loss_spike")):
        post.now = now
        sink.anomaly(anomaly(kind))
    for now in (300, 600):
        post.now = now
        sink.anomaly(anomaly())

    told = [(each["anomaly"]["kind"], each["anomaly"]["held_back"]) for each in post.posted]
    assert told == [("loss_spike", 0), ("restart", 0), ("loss_spike", 2), ("loss_spike", 0)]


def test_what_was_not_delivered_does_not_silence_the_next(post: Post) -> None:
    """Otherwise five minutes would pass in which nobody is told anything."""
    sink = post.sink()
    post.failing = True
    with pytest.raises(SinkTrouble):
        sink.anomaly(anomaly())
    post.failing = False

    sink.anomaly(anomaly())

    assert len(post.posted) == 1


def test_one_report_from_a_source_in_five_minutes(post: Post) -> None:
    """As with anomalies, with which they do not interfere."""
    sink = post.sink()

    for now, source in ((0, "loss"), (1, "loss"), (2, "inputs"), (300, "loss")):
        post.now = now
        sink.anomaly(anomaly(source, now))
        sink.report(NOTE._replace(source=source))

    told = [each["report"] for each in post.posted if each["event"] == "report"]
    assert [(report["source"], report["held_back"]) for report in told] == [
        ("loss", 0),
        ("inputs", 0),
        ("loss", 1),
    ]
    assert len(post.posted) == 2 * len(told)


def test_an_overflow_that_finds_a_scale_is_no_news(post: Post) -> None:
    """Mixed precision begins with some, and the log has them as information alone."""
    sink = post.sink()

    sink.report(NOTE._replace(alarming=False))

    assert post.posted == []


def test_start_and_end_can_be_left_out(post: Post) -> None:
    """Some want to hear of trouble only."""
    sink = post.sink(lifecycle=False)

    sink.start(RUN)
    sink.anomaly(anomaly())
    sink.finish(RunSummary("tiny", 0, "completed"))

    assert [each["event"] for each in post.posted] == ["anomaly"]


def test_the_url_from_a_file_or_a_variable(tmp_path: Path) -> None:
    """The blank that editors leave at its end is not part of it."""
    file = tmp_path / "url"
    file.write_text("https://hooks.slack.com/services/x\n")

    assert WebhookSink(url_file=file).name == "slack"
    environ = {"HOOK": "https://discord.com/api/webhooks/1/x"}
    assert WebhookSink(url_env="HOOK", environ=environ).name == "discord"


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("https://hooks.slack.com/services/x", "slack"),
        ("https://ptb.discord.com/api/webhooks/1/x", "discord"),
        ("https://discordapp.com/api/webhooks/1/x", "discord"),
        ("https://mattermost.example.org/hooks/x", "json"),
    ],
)
def test_the_kind_by_the_host(url: str, kind: str) -> None:
    """Whoever is not known gets JSON."""
    assert WebhookSink(url).name == kind


def test_a_kind_that_is_given_wins() -> None:
    """Mattermost and others take what Slack takes."""
    sink = WebhookSink("https://mattermost.example.org/hooks/x", kind="slack", name="chat")

    assert sink.name == "chat"


def test_a_kind_is_known_in_any_case() -> None:
    """Slack and Discord write themselves so."""
    assert WebhookSink(SECRET, kind="Slack").name == "slack"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "one of url, url_file and url_env, got none"),
        ({"url": SECRET, "url_env": "HOOK"}, "url_file and url_env, got url and url_env"),
        ({"url": "example.org/secret"}, "url must hold one address"),
        ({"url": "https://x/secret two"}, "url must hold one address"),
        ({"url_env": "NOT_SET", "environ": {}}, "the variable NOT_SET is not set"),
        ({"url_env": "E", "environ": {"E": ""}}, "the variable E must hold one address"),
        ({"url": "http:///secret"}, "url must hold an address with a host"),
        ({"url": "http://a:abc/secret"}, "a port from 1 to 65535"),
        ({"url": "http://a:70000/secret"}, "a port from 1 to 65535"),
        ({"url": "http://a:0/secret"}, "a port from 1 to 65535"),
        ({"url": "http://[abc/secret", "kind": "json"}, "url must hold an address with a host"),
        ({"url": "http://u:secret@a/x"}, "without a user name and a password"),
        ({"url_file": "/not/there"}, "No such file"),
        ({"url": SECRET, "kind": "teams"}, "one of slack, discord, json, got 'teams'"),
        ({"url": SECRET, "cooldown_seconds": -1}, "0 or more"),
        ({"url": SECRET, "cooldown_seconds": "5"}, "must be a number, 0 or more, got '5'"),
        ({"url": SECRET, "cooldown_seconds": None}, "must be a number, 0 or more, got None"),
        ({"url": SECRET, "cooldown_seconds": True}, "must be a number, 0 or more, got True"),
        ({"url": SECRET, "lifecycle": "no"}, "lifecycle must be True or False, got 'no'"),
    ],
)
def test_bad_settings(settings: dict[str, Any], says: str) -> None:
    """Each is refused at the start, by name, and the secret is in no message."""
    with pytest.raises(ValueError, match=says) as caught:
        WebhookSink(**settings)

    assert "secret" not in str(caught.value)
