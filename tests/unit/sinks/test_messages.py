# SPDX-License-Identifier: Apache-2.0
"""What a chat is told, in the form in which it takes it."""

from __future__ import annotations

import json
from math import inf, nan

import pytest

from tests.e2e.chat_server import discord_complaint, slack_complaint
from training_exporter.catalog import runbook
from training_exporter.sinks import RunInfo
from training_exporter.sinks.messages import (
    PAYLOADS,
    Message,
    discord_payload,
    finished,
    found,
    json_payload,
    slack_payload,
    started,
)
from training_exporter.snapshot import Anomaly
from training_exporter.summary.making import RunSummary

RUN = RunInfo("a<b> & @everyone", 0, {"model": "GPT", "host": "node7", "profile": "robust"})
SPIKE = Anomaly("loss_spike", 1200, 100.0, 9.25, 2.0)
BROKEN = Anomaly("non_finite", 7, 100.0, nan, inf)
END = RunSummary("tiny", 0, "crashed", "ValueError", step=3, steps=3.0, loss=nan)
MESSAGES = [started(RUN), found(RUN, SPIKE, 2), found(RUN, BROKEN, 0), finished(END)]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.title)
def test_each_service_takes_each_message(message: Message) -> None:
    """As strict JSON, within the limits."""
    for payload_of in PAYLOADS.values():
        json.dumps(payload_of(message), allow_nan=False)
    assert slack_complaint(slack_payload(message)) == ""
    assert discord_complaint(discord_payload(message)) == ""


def test_an_anomaly_in_words() -> None:
    """Kind, step, run, meaning, the two numbers where there are such, and what was held back."""
    spike, broken = found(RUN, SPIKE, 2), found(RUN, BROKEN, 0)

    assert spike.title == "loss_spike at step 1,200 of run a<b> & @everyone"
    assert spike.text == (
        "the loss is suddenly far above its recent level (value 9.25, threshold 2)\n"
        "2 more of this kind since the last message"
    )
    assert broken.text == "the loss or the gradient norm is NaN or infinite"


def test_the_title_leads_to_what_to_do() -> None:
    """About an anomaly of ours; nothing is promised about others, or where nothing is wrong."""
    link = runbook("loss_spike")
    mine = found(RUN, SPIKE._replace(kind="mine"), 0)

    assert slack_payload(found(RUN, SPIKE, 0))["attachments"][0]["title_link"] == link
    assert discord_payload(found(RUN, SPIKE, 0))["embeds"][0]["url"] == link
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
    """What happened, with the values by name."""
    payload = json_payload(found(RUN, BROKEN, 0))

    assert payload["event"] == "anomaly"
    assert payload["anomaly"] == {
        "run": RUN.run, "rank": 0, "kind": "non_finite", "step": 7, "timestamp": 100.0,
        "value": "NaN", "threshold": "Infinity", "held_back": 0,
        "runbook": runbook("non_finite"),
    }  # fmt: skip
    assert json_payload(finished(END))["finished"]["state"] == "crashed"
