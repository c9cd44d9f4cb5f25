# SPDX-License-Identifier: Apache-2.0
"""What a chat is told, in the form in which it takes it."""

from __future__ import annotations

import json
from math import inf, nan

import pytest

from tests.e2e.chat_server import discord_complaint, slack_complaint
from training_exporter.catalog import runbook
from training_exporter.forensics.text import how_to_explain
from training_exporter.sinks import RunInfo
from training_exporter.sinks.messages import (
    PAYLOADS,
    Message,
    discord_payload,
    finished,
    found,
    json_payload,
    reported,
    slack_payload,
    started,
)
from training_exporter.snapshot import Anomaly
from training_exporter.status import ReportNote
from training_exporter.summary.making import RunSummary

RUN = RunInfo("a<b> & @everyone", 0, {"model": "GPT", "host": "node7", "profile": "robust"})
SPIKE = Anomaly("loss_spike", 1200, 100.0, 9.25, 2.0)
BROKEN = Anomaly("non_finite", 7, 100.0, nan, inf)
END = RunSummary("tiny", 0, "crashed", "ValueError", step=3, steps=3.0, loss=nan)
NOTE = ReportNote("loss", "loss NaN at step 7; likely cause: the data", "/runs/r.json", True)
MESSAGES = [
    started(RUN), found(RUN, SPIKE, 2), found(RUN, BROKEN, 0), reported(RUN, NOTE, 0),
    finished(END),
]  # fmt: skip


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.title)
def test_each_service_takes_each_message(message: Message) -> None:
    """As strict JSON, within the limits."""
    for payload_of in PAYLOADS.values():
        json.dumps(payload_of(message), allow_nan=False)
    assert slack_complaint(slack_payload(message)) == ""
    assert discord_complaint(discord_payload(message)) == ""


def test_a_start_in_words() -> None:
    """With its step if it is not the first of all."""
    titles = [started(RUN._replace(run="tiny", step=step)).title for step in (None, 0, 1, 1061)]

    assert titles == ["run tiny has started"] * 3 + ["run tiny has started at step 1,061"]
    assert json_payload(started(RUN._replace(step=61)))["started"]["step"] == 61


def test_an_anomaly_in_words() -> None:
    """Kind, step, run, meaning, the two numbers where there are such, and what was held back."""
    spike, broken = found(RUN, SPIKE, 2), found(RUN, BROKEN, 0)

    assert spike.title == "loss_spike at step 1,200 of run a<b> & @everyone"
    assert spike.text == (
        "the loss is suddenly far above its recent level (value 9.25, threshold 2)\n"
        "2 more of this kind since the last message"
    )
    assert broken.text == "the loss or the gradient norm is NaN or infinite"


def test_a_report_in_words() -> None:
    """What the log says of it: which of the two, the likely cause, and how to read the rest."""
    command = how_to_explain("/runs/r.json")

    message = reported(RUN, NOTE, 1)

    assert message.title == "report on a NaN or Inf in run a<b> & @everyone"
    assert message.text == (
        f"loss NaN at step 7; likely cause: the data\nfor more: {command}\n"
        "1 more of this kind since the last message"
    )
    assert json_payload(message)["report"] == {
        "run": RUN.run, "rank": 0, "source": "loss", "summary": NOTE.summary,
        "path": "/runs/r.json", "explain": command, "held_back": 1,
        "runbook": runbook("non_finite"),
    }  # fmt: skip


def test_a_report_without_a_file() -> None:
    """There is nothing to explain, and the cause is told all the same."""
    message = reported(RUN, NOTE._replace(path=None), 0)

    assert message.text == f"{NOTE.summary}\nthe report could not be written"
    assert message.details["explain"] is None


def test_the_title_leads_to_what_to_do() -> None:
    """About an anomaly of ours, or a NaN; nothing is promised about others, or where nothing is
    wrong."""
    link = runbook("loss_spike")
    mine = found(RUN, SPIKE._replace(kind="mine"), 0)

    assert slack_payload(found(RUN, SPIKE, 0))["attachments"][0]["title_link"] == link
    assert discord_payload(found(RUN, SPIKE, 0))["embeds"][0]["url"] == link
    assert reported(RUN, NOTE, 0).link == runbook("non_finite")
    for message in (mine, started(RUN)):
        assert "title_link" not in slack_payload(message)["attachments"][0]
        assert "url" not in discord_payload(message)["embeds"][0]


def test_nobody_is_mentioned() -> None:
    """A run may be called like everybody in the channel."""
    (attachment,) = slack_payload(started(RUN))["attachments"]

    assert attachment["title"] == "run a&lt;b&gt; &amp; @everyone has started"
    assert discord_payload(started(RUN))["allowed_mentions"] == {"parse": []}


def test_long_texts_are_cut() -> None:
    """Discord refuses what is longer than it says."""
    long = Message("started", "t" * 5000, "x" * 50_000, 0, {})

    assert discord_complaint(discord_payload(long)) == ""
    assert len(slack_payload(long)["attachments"][0]["text"]) == 3000


def test_json_for_programs() -> None:
    """What happened, with the values by name; a NaN passes no threshold."""
    payload = json_payload(found(RUN, BROKEN, 0))

    assert payload["event"] == "anomaly"
    assert payload["anomaly"] == {
        "run": RUN.run, "rank": 0, "kind": "non_finite", "step": 7, "timestamp": 100.0,
        "value": "NaN", "held_back": 0, "runbook": runbook("non_finite"),
    }  # fmt: skip
    assert json_payload(found(RUN, SPIKE, 0))["anomaly"]["threshold"] == 2.0
    assert json_payload(finished(END))["finished"]["state"] == "crashed"
