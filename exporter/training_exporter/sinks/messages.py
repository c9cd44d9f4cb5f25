# SPDX-License-Identifier: Apache-2.0
"""What a webhook says, and how Slack, Discord and others want to have it said.

Slack: https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks. Discord:
https://discord.com/developers/docs/resources/webhook#execute-webhook.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any, Final, NamedTuple

from training_exporter.catalog import COMPLETED, CRASHED, NON_FINITE, runbook
from training_exporter.forensics.text import how_to_explain
from training_exporter.sinks.sink import RunInfo
from training_exporter.snapshot import Anomaly
from training_exporter.status import ReportNote
from training_exporter.summary.making import RunSummary, plain
from training_exporter.summary.text import headline, summary_rows
from training_exporter.values import json_ready

STARTED: Final = "started"
ANOMALY: Final = "anomaly"
REPORT: Final = "report"
FINISHED: Final = "finished"

SLACK: Final = "slack"
DISCORD: Final = "discord"
JSON: Final = "json"

_NEUTRAL, _GOOD, _BAD = 0x3B88C3, 0x2EB67D, 0xD93025
_DISCORD_TITLE: Final = 256
_DISCORD_TEXT: Final = 4096
_SLACK_TEXT: Final = 3000
_SLACK_ESCAPES: Final = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})


class Message(NamedTuple):
    """Something to say.

    Attributes:
        event: STARTED, ANOMALY, REPORT or FINISHED.
        title: one line.
        text: more lines.
        colour: as 0xRRGGBB.
        details: the same for programs, in values that strict JSON can hold.
        link: where is written what to do about it.
    """

    event: str
    title: str
    text: str
    colour: int
    details: Mapping[str, Any]
    link: str | None = None


def started(run: RunInfo) -> Message:
    """A run has begun to step, or goes on."""
    known = [f"{name}: {value}" for name, value in run.info.items() if name in _TELLING and value]
    details = {"run": run.run, "rank": run.rank, "step": run.step, "info": dict(run.info)}
    where = f" at step {run.step:,}" if run.step is not None and run.step > 1 else ""
    title = f"run {run.run} has started{where}"
    return Message(STARTED, title, "\n".join(known), _NEUTRAL, details)


_TELLING: Final = ("model", "framework", "host", "world_size")


def found(run: RunInfo, anomaly: Anomaly, held_back: int) -> Message:
    """An anomaly began; so many of its kind were not told since the last one that was."""
    details = {
        "run": run.run,
        "rank": run.rank,
        **json_ready(anomaly),
        "held_back": held_back,
        "runbook": runbook(anomaly.kind),
    }
    if not isfinite(anomaly.threshold):
        del details["threshold"]  # there is none
    text = anomaly.in_words + _held_back(held_back)
    title = f"{anomaly.kind} at step {anomaly.step:,} of run {run.run}"
    return Message(ANOMALY, title, text, _BAD, details, details["runbook"])


def reported(run: RunInfo, note: ReportNote, held_back: int) -> Message:
    """A report on a NaN was made; so many from the same source were not told since the last one
    that was."""
    command = None if note.path is None else how_to_explain(note.path)
    details = {
        "run": run.run,
        "rank": run.rank,
        "source": note.source,
        "summary": note.summary,
        "path": note.path,
        "explain": command,
        "held_back": held_back,
        "runbook": runbook(NON_FINITE),
    }
    more = "the report could not be written" if command is None else f"for more: {command}"
    text = f"{note.summary}\n{more}{_held_back(held_back)}"
    title = f"report on a NaN or Inf in run {run.run}"
    return Message(REPORT, title, text, _BAD, details, runbook(NON_FINITE))


def _held_back(number: int) -> str:
    return f"\n{number} more of this kind since the last message" if number else ""


def finished(summary: RunSummary) -> Message:
    """A run has ended."""
    text = "\n".join(f"{name}: {value}" for name, value in summary_rows(summary))
    colour = {COMPLETED: _GOOD, CRASHED: _BAD}.get(summary.state, _NEUTRAL)
    return Message(FINISHED, headline(summary), text, colour, plain(summary))


def slack_payload(message: Message) -> dict[str, Any]:
    """As Slack's incoming webhooks take it. What could mention somebody is escaped."""
    title, text = message.title.translate(_SLACK_ESCAPES), message.text.translate(_SLACK_ESCAPES)
    attachment = {
        "fallback": title,
        "color": f"#{message.colour:06x}",
        "title": title,
        "text": text[:_SLACK_TEXT],
        **({"title_link": message.link} if message.link else {}),
    }
    return {"attachments": [attachment]}


def discord_payload(message: Message) -> dict[str, Any]:
    """As Discord's webhooks take it; nobody is mentioned, whatever a run is called."""
    embed = {
        "title": message.title[:_DISCORD_TITLE],
        "description": message.text[:_DISCORD_TEXT],
        "color": message.colour,
        **({"url": message.link} if message.link else {}),
    }
    return {"embeds": [embed], "allowed_mentions": {"parse": []}}


def json_payload(message: Message) -> dict[str, Any]:
    """For whoever reads it by program."""
    return {
        "event": message.event,
        "title": message.title,
        "text": message.text,
        message.event: message.details,
    }


PAYLOADS: Final[Mapping[str, Callable[[Message], dict[str, Any]]]] = {
    SLACK: slack_payload,
    DISCORD: discord_payload,
    JSON: json_payload,
}
