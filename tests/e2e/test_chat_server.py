# SPDX-License-Identifier: Apache-2.0
"""The local stand-in for Slack and Discord is as strict as they are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from tests.e2e.chat_server import ChatServer

pytestmark = pytest.mark.e2e


@pytest.fixture
def chat() -> Iterator[ChatServer]:
    """One that serves."""
    with ChatServer() as server:
        yield server


def post(
    url: str, body: Any, kind: str = "application/json", method: str = "POST"
) -> tuple[int, str]:
    """Status and text of the answer."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = Request(url, data, {"Content-Type": kind}, method=method)
    try:
        with urlopen(request, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as refusal:
        with refusal:
            return refusal.code, refusal.read().decode()


def test_good_messages_are_taken_and_kept(chat: ChatServer) -> None:
    """With the answer of each service."""
    assert post(chat.slack_url, {"attachments": [{"title": "a", "text": "b"}]}) == (200, "ok")
    assert post(chat.discord_url, {"content": "", "embeds": [{"title": "c"}]}) == (204, "")

    assert [(m.service, m.title, m.text) for m in chat.messages] == [
        ("slack", "a", "b"),
        ("discord", "c", ""),
    ]
    assert chat.refused == []


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{", "invalid_payload"),
        ([], "invalid_payload"),
        ({}, "no_text"),
        ({"attachments": [{"title": "only"}]}, "no_text"),
        ({"attachments": "x"}, "invalid_attachments"),
        ({"attachments": [{"text": 1}]}, "invalid_attachments"),
    ],
)
def test_slack_refuses(chat: ChatServer, body: Any, reason: str) -> None:
    """What it could not show."""
    assert post(chat.slack_url, body) == (400, reason)
    assert chat.messages == []


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{", "invalid JSON"),
        ({"content": "", "embeds": []}, "empty message"),
        ({"content": "x" * 2001}, "content"),
        ({"embeds": [{"title": "x"}] * 11}, "embeds"),
        ({"embeds": [{"title": "x" * 257}]}, "title"),
        ({"embeds": [{"description": "x" * 4097}]}, "description"),
        ({"embeds": [{}]}, "required"),
        ({"embeds": [{"title": "x", "color": 0x1000000}]}, "color"),
    ],
)
def test_discord_refuses(chat: ChatServer, body: Any, reason: str) -> None:
    """Empty messages, and what is longer than it allows."""
    status, text = post(chat.discord_url, body)

    assert status == 400
    assert reason in text
    assert chat.messages == []


def test_only_json_may_be_posted_to_the_two_addresses(chat: ChatServer) -> None:
    """Another method, type or path is refused."""
    good = {"text": "x"}

    assert post(chat.slack_url, good, kind="text/plain")[0] == 400
    assert post(chat.slack_url, good, method="GET")[0] == 405
    assert post(f"{chat.url}/other", good)[0] == 404
    assert chat.messages == []


def test_a_limited_rate_refuses_everything(chat: ChatServer) -> None:
    """Until it is over."""
    chat.rate_limited = True
    assert post(chat.slack_url, {"text": "x"}) == (429, "rate_limited")

    chat.rate_limited = False
    assert post(chat.slack_url, {"text": "x"}) == (200, "ok")
    assert chat.refused == ["429 rate_limited"]


def test_waiting_in_vain_says_what_came(chat: ChatServer) -> None:
    """So that a failed test can be read."""
    post(chat.discord_url, {"embeds": [{"title": "something else"}]})

    with pytest.raises(TimeoutError, match="something else"):
        chat.wait(lambda messages: len(messages) > 1, 0.05)
