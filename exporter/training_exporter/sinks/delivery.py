# SPDX-License-Identifier: Apache-2.0
"""Posting to an address that is a secret, again and again where that may help."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from email.message import Message as Headers
from http.client import HTTPException
from typing import IO, Final
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from training_exporter._version import __version__
from training_exporter.sinks.sink import SinkClosed, SinkTrouble

REQUEST_SECONDS: Final = 5.0
BACK_OFF: Final = (1.0, 4.0, 15.0)
"""Seconds before each further try."""
MOST_PATIENCE: Final = 120.0
"""Seconds that a server may ask to be left alone; one that asks for more is given up."""
MAX_REASON: Final = 200
LONG_SECRET: Final = 8
"""A shorter one may well be a part of other words."""

_MOST_READ: Final = 4096
"""Bytes of an answer; far more than are shown, so that the secret is cut in none of these."""

_TOO_MANY: Final = 429
_SERVER_ERROR: Final = 500


class RefusedError(SinkClosed):
    """The server does not want such a message, and will not want it later."""


class _NoRedirects(HTTPRedirectHandler):
    """A redirect would turn a POST into a GET and look like success."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: Headers, newurl: str
    ) -> None:
        """Go nowhere."""


_opener = build_opener(_NoRedirects)


def deliver(url: str, body: bytes, pause: Callable[[float], None]) -> None:
    """Post JSON to a URL, up to four times. No message of an error has the URL in it.

    Args:
        url: where to, http or https.
        body: the JSON.
        pause: waits for so many seconds.

    Raises:
        SinkTrouble: the server was not to be reached, was in trouble or has had too much each time.
        RefusedError: the server refused it for another reason.
    """
    for wait in (*BACK_OFF, None):
        reason, asked = _try(url, body)
        if reason is None:
            return
        if wait is None or asked > MOST_PATIENCE:
            raise SinkTrouble(reason)
        pause(max(wait, asked))


def _try(url: str, body: bytes) -> tuple[str | None, float]:
    """Why it did not work, None if it did, and seconds that the server wants to be left alone."""
    agent = f"training-exporter/{__version__}"
    headers = {"Content-Type": "application/json", "User-Agent": agent}
    try:
        request = Request(url, body, headers)  # noqa: S310 - the URL was checked
        with _opener.open(request, timeout=REQUEST_SECONDS):
            return None, 0.0
    except HTTPError as error:
        with error:
            reason = f"HTTP {error.code}{_said(error, url)}"
            if error.code != _TOO_MANY and error.code < _SERVER_ERROR:
                raise RefusedError(f"the server refused: {reason}") from None
            return f"the server answers {reason}", _retry_after(error.headers)
    except HTTPException as error:  # its text may have the URL in it
        return f"the server was not understood: {type(error).__name__}", 0.0
    except OSError as error:
        return f"the server was not reached: {getattr(error, 'reason', error)}", 0.0


def _said(error: HTTPError, url: str) -> str:
    """What the server says of it, as far as that comes, without the secret."""
    said = ""
    with suppress(OSError, HTTPException):
        said = error.read(_MOST_READ).decode(errors="replace")
    said = " ".join(_masked(said, url).split())[:MAX_REASON]
    return f": {said}" if said else ""


def _masked(said: str, url: str) -> str:
    """The text without what of the URL comes after the host."""
    after_host = urlsplit(url)._replace(scheme="", netloc="", fragment="").geturl()
    secret = after_host.lstrip("/")
    if not secret:
        return said
    if len(secret) >= LONG_SECRET:
        return said.replace(secret, "...")
    return re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "...", said)


def _retry_after(headers: Headers) -> float:
    """Seconds; a date, which none of those services sends, is taken for nothing."""
    with suppress(ValueError):
        return float(headers.get("Retry-After") or 0.0)
    return 0.0
