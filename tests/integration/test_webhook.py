# SPDX-License-Identifier: Apache-2.0
"""Webhooks over real sockets, to a server that is as strict as Slack and Discord."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from tests.e2e.chat_server import ChatServer
from training_exporter import TrainingExporter
from training_exporter.sinks import SinkTrouble
from training_exporter.sinks.delivery import BACK_OFF, RefusedError, deliver
from training_exporter.sinks.webhook import WebhookSink

BODY = b'{"text": "hello"}'


@pytest.fixture
def chat() -> Iterator[ChatServer]:
    with ChatServer() as server:
        yield server


@pytest.mark.parametrize("service", ["slack", "discord"])
def test_a_run_is_told_to_a_chat(chat: ChatServer, service: str) -> None:
    """That it started, its anomaly with the report on it, and how it ended with its summary."""
    url = {"slack": chat.slack_url, "discord": chat.discord_url}[service]
    sink = WebhookSink(url, kind=service)

    with TrainingExporter(serve=False, run="tiny", sinks=[sink]) as exporter:
        for step in range(20):
            exporter.step(loss=float("nan") if step == 10 else 2.0)

    titles = [message.title for message in chat.messages]
    assert titles == [
        "run tiny has started",
        "non_finite at step 11 of run tiny",
        "report on a NaN or Inf in run tiny",
        "run tiny completed at step 20",
    ]
    assert chat.messages[2].text.startswith("loss NaN at step 11; likely cause: ")
    assert "anomalies: non_finite 1 (at step 11)" in chat.messages[-1].text
    assert chat.refused == []
    assert exporter.health.errors["sink"] == 0


def test_a_run_that_goes_on_says_from_where(chat: ChatServer) -> None:
    """After a checkpoint its first step has a higher number."""
    with TrainingExporter(
        serve=False, run="tiny", sinks=[WebhookSink(chat.slack_url, kind="slack")]
    ) as exporter:
        for step in (61, 62):
            exporter.step(loss=2.0, step=step)

    assert chat.messages[0].title == "run tiny has started at step 61"


def test_a_server_that_is_in_a_hurry_is_obeyed(chat: ChatServer) -> None:
    """429 says for how long to keep away; after four tries it is enough."""
    chat.rate_limited = True
    pauses: list[float] = []

    with pytest.raises(SinkTrouble, match="HTTP 429: rate_limited"):
        deliver(chat.slack_url, BODY, pauses.append)

    assert pauses == list(BACK_OFF)  # Retry-After: 1 is no more than the first of them
    assert len(chat.refused) == 1 + len(BACK_OFF)


def test_a_second_try_helps(chat: ChatServer) -> None:
    """Once the server takes messages again, nothing is lost."""
    chat.rate_limited = True

    def pause(seconds: float) -> None:
        chat.rate_limited = False

    deliver(chat.slack_url, BODY, pause)

    assert [message.payload for message in chat.messages] == [{"text": "hello"}]


def test_what_is_refused_is_not_tried_again(
    chat: ChatServer, logs: pytest.LogCaptureFixture
) -> None:
    """A URL that is wrong stays wrong: the sink is retired, and its URL is in no log."""
    secret = f"{chat.url}/services/not-there/secret"
    sink = WebhookSink(secret, kind="slack")

    with TrainingExporter(serve=False, sinks=[sink]) as exporter:
        exporter.step(loss=1.0)

    assert chat.refused == ["404 no_service"]
    assert exporter.health.errors["sink"] == 1
    assert (
        "the sink slack is switched off, as it raised RefusedError: the server refused: HTTP"
        in logs.text
    )
    assert "HTTP 404: no_service" in logs.text
    assert "secret" not in logs.text


@pytest.fixture
def answering() -> Iterator[Callable[..., str]]:
    """Starts a server that answers always the same, and gives its URL."""
    with ExitStack() as servers:

        def start(
            status: int, *, path: str = "/hook/secret", says: str = "I know no {}", **headers: str
        ) -> str:
            class Handler(BaseHTTPRequestHandler):
                def do_POST(self) -> None:
                    self.rfile.read(int(self.headers["Content-Length"]))
                    body = says.format(self.path).encode()
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name.replace("_", "-"), value)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

                def log_message(self, format: str, *args: object) -> None:
                    pass

            server = servers.enter_context(HTTPServer(("127.0.0.1", 0), Handler))
            thread = Thread(target=server.serve_forever, args=(0.05,))
            thread.start()
            servers.callback(thread.join)
            servers.callback(server.shutdown)
            return f"http://127.0.0.1:{server.server_port}{path}"

        yield start


def test_a_server_that_repeats_the_url_does_not_get_it_logged(
    answering: Callable[..., str],
) -> None:
    """What it says is quoted, without the part that is secret."""
    with pytest.raises(RefusedError) as caught:
        deliver(answering(400), BODY, lambda seconds: None)

    assert str(caught.value) == "the server refused: HTTP 400: I know no /..."


@pytest.mark.parametrize(
    ("path", "says", "shown"),
    [
        ("", "no such hook!", "no such hook!"),
        ("/", "no such hook!", "no such hook!"),
        ("/o", "no hook {} or o", "no hook /... or ..."),
        ("/s3cret", "no s3cret, {}!", "no ..., /...!"),
        ("?key=s3cret", "no {}", "no /..."),
        ("/hook/s3cret", f"{'x' * 195}{{}}", f"{'x' * 195}/..."),
        ("/hook/s3cret", "nohook/s3crets", "no...s"),
    ],
)
def test_what_a_server_says_is_quoted_without_the_secret(
    answering: Callable[..., str], path: str, says: str, shown: str
) -> None:
    """However short that is, and wherever the quotation is cut; the rest can be read."""
    url = answering(404, path=path, says=says)

    with pytest.raises(RefusedError) as caught:
        deliver(url, BODY, lambda seconds: None)

    assert str(caught.value) == f"the server refused: HTTP 404: {shown}"


def test_a_longer_time_that_is_asked_for_is_given(answering: Callable[..., str]) -> None:
    """Discord may ask for half a minute."""
    pauses: list[float] = []

    with pytest.raises(SinkTrouble):
        deliver(answering(429, Retry_After="7.5"), BODY, pauses.append)

    assert pauses == [7.5, 7.5, 15.0]


@pytest.mark.parametrize("asked", ["3600", "1e999"])
def test_nobody_waits_for_an_hour(answering: Callable[..., str], asked: str) -> None:
    """What comes meanwhile would pile up."""
    pauses: list[float] = []

    with pytest.raises(SinkTrouble):
        deliver(answering(503, Retry_After=asked), BODY, pauses.append)

    assert pauses == []


@pytest.mark.parametrize("asked", ["soon", "nan", "-5"])
def test_a_time_that_is_none(answering: Callable[..., str], asked: str) -> None:
    """Is as if nothing were asked."""
    pauses: list[float] = []

    with pytest.raises(SinkTrouble):
        deliver(answering(503, Retry_After=asked), BODY, pauses.append)

    assert pauses == list(BACK_OFF)


def test_a_redirect_is_no_delivery(answering: Callable[..., str]) -> None:
    """A page to log in answers 200 to everything."""
    with pytest.raises(RefusedError, match="HTTP 302"):
        deliver(answering(302, Location=answering(200)), BODY, lambda seconds: None)


def test_nobody_there(logs: pytest.LogCaptureFixture) -> None:
    """Is trouble, which may go by, and says nothing of the URL."""
    with ChatServer() as gone:
        url = gone.slack_url

    with pytest.raises(SinkTrouble, match="the server was not reached") as caught:
        deliver(url, BODY, lambda seconds: None)

    assert "secret" not in str(caught.value)
