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
    ANOMALY,
    DISCORD,
    JSON,
    PAYLOADS,
    REPORT,
    SLACK,
    Message,
    finished,
    found,
    reported,
    started,
)
from training_exporter.sinks.sink import RunInfo, Sink
from training_exporter.snapshot import Anomaly
from training_exporter.status import ReportNote
from training_exporter.summary.making import RunSummary

COOLDOWN_SECONDS: Final = 300.0

_NOBODY = RunInfo("training", 0, {})


class WebhookSink(Sink):
    """Posts that a run has started, its anomalies, reports on a NaN, and how it ended.

    Of a kind of anomaly there is one message in `cooldown_seconds`, and of reports from one source;
    the next one says how many were held back. An overflow by which mixed precision finds its scale
    is no report to tell. What cannot be delivered is tried again, with waits in between and those
    that the server asks for. The URL is a secret, and in no log.

    Args:
        url, url_file, url_env: the URL, or the file or the environment variable that holds it; one
            of the three.
        kind: "slack", "discord" or "json", in any case; None goes by the host, with JSON for all
            others.
        name: name of the sink; None is its kind.
        cooldown_seconds: seconds between two messages on one kind of anomaly or report.
        lifecycle: False leaves out start and end.
        environ: where the variable is.
        clock, pause: monotonic time in seconds, and waiting for some.

    Raises:
        ValueError: none or several of the three, no URL in it, or another argument that is out of
            range; the message says what would be right, and not the URL.
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
        service = str(kind).lower() if kind else _kind_of(self._url)
        if service not in PAYLOADS:
            raise ValueError(f"kind must be one of {', '.join(PAYLOADS)}, got {kind!r}")
        is_number = isinstance(cooldown_seconds, int | float)
        if not is_number or isinstance(cooldown_seconds, bool) or not cooldown_seconds >= 0:
            raise ValueError(
                f"cooldown_seconds must be a number, 0 or more, got {cooldown_seconds!r}"
            )
        if not isinstance(lifecycle, bool):
            raise ValueError(f"lifecycle must be True or False, got {lifecycle!r}")
        self.name = name or service
        self._payload = PAYLOADS[service]
        self._cooldown = cooldown_seconds
        self._lifecycle = lifecycle
        self._clock = clock
        self._pause = pause
        self._run = _NOBODY
        self._told: dict[tuple[str, str], float] = {}
        self._held_back: dict[tuple[str, str], int] = {}

    def start(self, run: RunInfo) -> None:
        self._run = run
        if self._lifecycle:
            self._send(started(run))

    def anomaly(self, anomaly: Anomaly) -> None:
        self._tell((ANOMALY, anomaly.kind), lambda held: found(self._run, anomaly, held))

    def report(self, note: ReportNote) -> None:
        if note.alarming:
            self._tell((REPORT, note.source), lambda held: reported(self._run, note, held))

    def finish(self, summary: RunSummary) -> None:
        if self._lifecycle:
            self._send(finished(summary))

    def _tell(self, sort: tuple[str, str], message: Callable[[int], Message]) -> None:
        """Send a message that is given how many of its sort were held back, or hold it back too."""
        now, held_back = self._clock(), self._held_back.get(sort, 0)
        if sort in self._told and now - self._told[sort] < self._cooldown:
            self._held_back[sort] = held_back + 1
            return
        self._send(message(held_back))
        self._told[sort], self._held_back[sort] = now, 0  # only now: else it was not delivered

    def _send(self, message: Message) -> None:
        body = json.dumps(self._payload(message), allow_nan=False).encode()
        deliver(self._url, body, self._pause)


def _secret(
    url: str | None,
    file: str | Path | None,
    variable: str | None,
    environ: Mapping[str, str],
) -> str:
    three = {"url": url, "url_file": file, "url_env": variable}
    given = [name for name, value in three.items() if value is not None]
    if len(given) != 1:
        got = " and ".join(given) or "none"
        raise ValueError(f"a webhook needs one of url, url_file and url_env, got {got}")
    where = "url"
    if file is not None:
        where = f"the file {file}"
        try:
            url = Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"the URL of the webhook cannot be read: {error}") from None
    elif variable is not None:
        where = f"the variable {variable}"
        url = environ.get(variable)
        if url is None:
            raise ValueError(f"{where} is not set; it must hold the URL of the webhook")
    return _checked(str(url).strip(), where)


def _checked(url: str, where: str) -> str:
    """The URL, if there can be a server at it; else it would be taken for one that is down."""
    if not re.fullmatch(r"https?://[!-~]+", url):
        raise ValueError(f"{where} must hold one address that begins with https:// or http://")
    try:
        parts = urlsplit(url)
        reachable = parts.hostname and parts.port != 0
    except ValueError:  # it is no number, or a bracket is missing; the text has the URL in it
        reachable = False
    if not reachable:
        raise ValueError(f"{where} must hold an address with a host, and a port from 1 to 65535")
    if "@" in parts.netloc:
        raise ValueError(f"{where} must hold an address without a user name and a password")
    return url


def _kind_of(url: str) -> str:
    host = urlsplit(url).hostname or ""
    if host == "hooks.slack.com":
        return SLACK
    if host.removeprefix("canary.").removeprefix("ptb.") in {"discord.com", "discordapp.com"}:
        return DISCORD
    return JSON
