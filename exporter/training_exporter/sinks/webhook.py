# SPDX-License-Identifier: Apache-2.0
"""Messages to a chat, or to any address that takes JSON, where there is no Alertmanager."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic, sleep
from typing import Final
from urllib.parse import urlsplit

from training_exporter.sinks.delivery import deliver
from training_exporter.sinks.messages import (
    DISCORD,
    JSON,
    PAYLOADS,
    SLACK,
    Message,
    finished,
    found,
    started,
)
from training_exporter.sinks.sink import RunInfo, Sink
from training_exporter.snapshot import Anomaly
from training_exporter.summary.making import RunSummary

COOLDOWN_SECONDS: Final = 300.0

_NOBODY = RunInfo("training", 0, {})


class WebhookSink(Sink):
    """Posts that a run has started, its anomalies, and how it ended.

    Of a kind of anomaly there is one message in `cooldown_seconds`; the next one says how many were
    held back. What cannot be delivered is tried again, with waits in between and those that the
    server asks for. The URL is a secret, and in no log.

    Args:
        url, url_file, url_env: the URL, or the file or the environment variable that holds it; one
            of the three.
        kind: "slack", "discord" or "json"; None goes by the host, with JSON for all others.
        name: name of the sink; None is its kind.
        cooldown_seconds: seconds between two messages on one kind of anomaly.
        lifecycle: False leaves out start and end.
        environ: where the variable is.
        clock, pause: monotonic time in seconds, and waiting for some.

    Raises:
        ValueError: none or several of the three, no URL in it, or an unknown kind.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        url_file: str | Path | None = None,
        url_env: str | None = None,
        kind: str | None = None,
        name: str | None = None,
        cooldown_seconds: float = COOLDOWN_SECONDS,
        lifecycle: bool = True,
        environ: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = monotonic,
        pause: Callable[[float], None] = sleep,
    ) -> None:
        self._url = _secret(url, url_file, url_env, environ)
        kind = kind or _kind_of(self._url)
        if kind not in PAYLOADS:
            raise ValueError(f"kind must be one of {', '.join(PAYLOADS)}, got {kind!r}")
        if not cooldown_seconds >= 0:
            raise ValueError(f"cooldown_seconds must be 0 or more, got {cooldown_seconds!r}")
        self.name = name or kind
        self._payload = PAYLOADS[kind]
        self._cooldown = cooldown_seconds
        self._lifecycle = lifecycle
        self._clock = clock
        self._pause = pause
        self._run = _NOBODY
        self._told: dict[str, float] = {}
        self._held_back: dict[str, int] = {}

    def start(self, run: RunInfo) -> None:
        self._run = run
        if self._lifecycle:
            self._send(started(run))

    def anomaly(self, anomaly: Anomaly) -> None:
        kind, now = anomaly.kind, self._clock()
        held_back = self._held_back.get(kind, 0)
        if kind in self._told and now - self._told[kind] < self._cooldown:
            self._held_back[kind] = held_back + 1
            return
        self._send(found(self._run, anomaly, held_back))
        self._told[kind], self._held_back[kind] = now, 0  # only now: else it was not delivered

    def finish(self, summary: RunSummary) -> None:
        if self._lifecycle:
            self._send(finished(summary))

    def _send(self, message: Message) -> None:
        body = json.dumps(self._payload(message), allow_nan=False).encode()
        deliver(self._url, body, self._pause)


def _secret(
    url: str | None,
    file: str | Path | None,
    variable: str | None,
    environ: Mapping[str, str],
) -> str:
    if sum(given is not None for given in (url, file, variable)) != 1:
        raise ValueError("a webhook needs one of url, url_file and url_env")
    where = "url"
    if file is not None:
        where = f"the file {file}"
        try:
            url = Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"the URL of the webhook cannot be read: {error}") from None
    elif variable is not None:
        where = f"the variable {variable}"
        url = environ.get(variable, "")
    url = str(url).strip()
    if not re.fullmatch(r"https?://[!-~]+", url):
        raise ValueError(f"{where} must hold one address that begins with https:// or http://")
    return url


def _kind_of(url: str) -> str:
    host = urlsplit(url).hostname or ""
    if host == "hooks.slack.com":
        return SLACK
    if host.removeprefix("canary.").removeprefix("ptb.") in {"discord.com", "discordapp.com"}:
        return DISCORD
    return JSON
