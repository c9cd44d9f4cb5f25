# SPDX-License-Identifier: Apache-2.0
"""A local server that takes webhooks as Slack and Discord do, and as strictly.

What they document: https://api.slack.com/messaging/webhooks (200 `ok`, or 400 with a word) and
https://discord.com/developers/docs/resources/webhook#execute-webhook (204, or 400 with JSON).
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

SLACK_PATH = "/services/T000/B000/secret-of-slack"
DISCORD_PATH = "/api/webhooks/1/secret-of-discord"

DISCORD_CONTENT = 2000
DISCORD_EMBEDS = 10
DISCORD_TITLE = 256
DISCORD_DESCRIPTION = 4096
DISCORD_ALL_TEXT = 6000


@dataclass(frozen=True)
class Message:
    """A message that was taken."""

    service: str
    """`slack` or `discord`."""
    payload: dict[str, Any]
    arrived: float
    """Unix time."""

    @property
    def part(self) -> dict[str, Any]:
        """Slack's first attachment or Discord's first embed, where Alertmanager writes."""
        parts: list[dict[str, Any]] = self.payload.get("attachments") or self.payload["embeds"]
        return parts[0]

    @property
    def title(self) -> str:
        """The heading."""
        return str(self.part.get("title", ""))

    @property
    def text(self) -> str:
        """What stands below the heading."""
        return str(self.part.get("text") or self.part.get("description") or "")


@dataclass
class ChatServer:
    """Listens on a free port of an address, the loopback interface's unless given, while its `with`
    block runs.

    `messages` are those that were taken, `refused` says why others were not. While `rate_limited`
    is true, everything is answered 429.
    """

    messages: list[Message] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    rate_limited: bool = False
    address: str = "127.0.0.1"

    def __post_init__(self) -> None:
        """Binds, but does not serve yet."""
        self._changed = threading.Condition()
        self._server = ListeningServer(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self) -> ChatServer:
        """Serves."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stops and closes the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{self.address}:{self._server.server_address[1]}"

    @property
    def slack_url(self) -> str:
        """What to give as SLACK_WEBHOOK_URL."""
        return self.url + SLACK_PATH

    @property
    def discord_url(self) -> str:
        """What to give as DISCORD_WEBHOOK_URL."""
        return self.url + DISCORD_PATH

    def wait(self, enough: Callable[[list[Message]], bool], timeout: float) -> list[Message]:
        """The messages as soon as they are enough; raises TimeoutError with what came instead."""
        with self._changed:
            if self._changed.wait_for(lambda: enough(self.messages), timeout):
                return list(self.messages)
        came = [(message.service, message.title) for message in self.messages]
        raise TimeoutError(f"after {timeout:g} s: {came}, refused: {self.refused}")

    def take(self, service: str, payload: dict[str, Any]) -> None:
        """Records a message."""
        with self._changed:
            self.messages.append(Message(service, payload, time.time()))
            self._changed.notify_all()

    def refuse(self, reason: str) -> None:
        """Records why something was not taken."""
        with self._changed:
            self.refused.append(reason)
            self._changed.notify_all()


def slack_complaint(payload: Any) -> str:
    """The word with which Slack refuses this payload, "" for a good one."""
    if not isinstance(payload, dict):
        return "invalid_payload"
    attachments = payload.get("attachments", [])
    if not isinstance(attachments, list) or not all(isinstance(a, dict) for a in attachments):
        return "invalid_attachments"
    if any(not isinstance(a.get("text", ""), str) for a in attachments):
        return "invalid_attachments"
    says_something = any(a.get("text") or a.get("fallback") for a in attachments)
    return "" if payload.get("text") or payload.get("blocks") or says_something else "no_text"


def discord_complaint(payload: Any) -> str:
    """What Discord has against this payload, "" if nothing."""
    if not isinstance(payload, dict):
        return "The request body contains invalid JSON."
    content, embeds = payload.get("content") or "", payload.get("embeds") or []
    if not content and not embeds:
        return "Cannot send an empty message"
    if not isinstance(content, str) or len(content) > DISCORD_CONTENT:
        return "content: must be 2000 or fewer in length"
    if not isinstance(embeds, list) or len(embeds) > DISCORD_EMBEDS:
        return "embeds: must be 10 or fewer in length"
    return next(filter(None, map(embed_complaint, embeds)), "")


def embed_complaint(embed: Any) -> str:
    """What Discord has against one embed."""
    if not isinstance(embed, dict):
        return "embeds: only dictionaries may be used"
    title, description = embed.get("title") or "", embed.get("description") or ""
    if not title and not description:
        return "embeds: this field is required"
    if len(title) > DISCORD_TITLE:
        return "embeds.title: must be 256 or fewer in length"
    if len(description) > DISCORD_DESCRIPTION:
        return "embeds.description: must be 4096 or fewer in length"
    if len(title) + len(description) > DISCORD_ALL_TEXT:
        return "embeds: size exceeds maximum size of 6000"
    color = embed.get("color", 0)
    return "" if isinstance(color, int) and 0 <= color <= 0xFFFFFF else "embeds.color: not a colour"


class ChatHandler(BaseHTTPRequestHandler):
    """One connection."""

    @property
    def chat(self) -> ChatServer:
        """Where messages are kept."""
        assert isinstance(self.server, ListeningServer)
        return self.server.chat

    def do_POST(self) -> None:
        """Takes a message or says what is wrong with it."""
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if len(body) < length:  # the sender gave up, as Alertmanager does when it stops
            self.close_connection = True
        elif self.chat.rate_limited:
            self.reject(429, "rate_limited", retry_after="1")
        elif self.path == SLACK_PATH:
            self.receive("slack", body, slack_complaint, "invalid_payload", (200, "ok"))
        elif self.path == DISCORD_PATH:
            wrong = "The request body contains invalid JSON."
            self.receive("discord", body, discord_complaint, wrong, (204, ""))
        else:
            self.reject(404, "no_service")

    def do_GET(self) -> None:
        """A webhook is posted to; the base class answers 501 to other methods."""
        self.reject(405, "method not allowed")

    def receive(
        self,
        service: str,
        body: bytes,
        complaint: Callable[[Any], str],
        not_json: str,
        accepted: tuple[int, str],
    ) -> None:
        """Takes a message of one service."""
        if self.headers.get_content_type() != "application/json":
            return self.reject(400, f"{service}: Content-Type must be application/json")
        try:
            payload = json.loads(body)
        except ValueError:
            return self.reject(400, not_json)
        reason = complaint(payload)
        if reason:
            return self.reject(400, reason)
        self.chat.take(service, payload)
        return self.answer(*accepted)

    def reject(self, status: int, reason: str, retry_after: str = "") -> None:
        """Refuses, and remembers why."""
        self.chat.refuse(f"{status} {reason}")
        self.answer(status, reason, retry_after)

    def answer(self, status: int, text: str, retry_after: str = "") -> None:
        """Sends an answer of plain text, if the sender still waits for it."""
        body = text.encode()
        self.send_response(status)
        if retry_after:
            self.send_header("Retry-After", retry_after)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        with suppress(ConnectionError):
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing: `messages` and `refused` are the log."""


class ListeningServer(ThreadingHTTPServer):
    """The socket of a chat server."""

    def __init__(self, chat: ChatServer) -> None:
        """Binds a free port."""
        self.chat = chat
        super().__init__((chat.address, 0), ChatHandler)
