# SPDX-License-Identifier: Apache-2.0
"""The demo with Prometheus and Alertmanager beside it, on this machine, until Ctrl-C.

    python -m scripts.stack [--port PORT] [--linger SECONDS] [options of `training-exporter demo`]

The end of the run is not the end, unless --linger says so. Nothing is left when all has ended: no
process, no port in use, and no file but reports on a NaN.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from math import inf, isinf
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from typing import NamedTuple

from scripts.alertmanager_config import SECRET_FILES, ConfigError
from scripts.monitoring import (
    USUAL_PORTS,
    MissingProgramError,
    Monitoring,
    Programs,
    find_programs,
    start_monitoring,
)
from scripts.processes import POLL_SECONDS, Child, ChildDiedError, Children, answers, free_port
from training_exporter.demo.shell import folder_for_reports

EXPORTER_PORT = 10400
REPORTS_FOLDER = "TRAINING_EXPORTER_FORENSICS_DIR"
USAGE_ERROR = 2
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

WELCOME = """\
Exporter       {exporter}
Alerts         {alerts_page}
Alertmanager   {alertmanager}  (no page there? amtool alert --alertmanager.url={alertmanager})
Messages       {messages}
Stop           {stop}

The demo says below at which step it causes what. Some seconds later Prometheus has the alert, and
so has Alertmanager; that the run has started is the first. What comes of each fault:
{alerts}
"""

WHEN_STAYING = "; when the run is over, all of this stays until then"

ALERTS = {
    "nan": "TrainingLossNaN, which silences spikes of this run for five minutes",
    "plateau": "TrainingLearningRateAnomaly, TrainingLossPlateau",
    "explosion": "TrainingDivergence, TrainingGradientExplosion, TrainingLossSpike,"
    " TrainingLearningRateAnomaly",
    "slow-data": "TrainingThroughputDrop",
    "stall": "TrainingStalled, after a minute",
    "crash": "TrainingCrashed",
}
"""Fault of the demo -> what is heard of it."""


def main(arguments: Sequence[str]) -> int:
    options = parsed(arguments)
    ended = Event()  # and no exception, so that nothing interrupts the end
    for number in ENDING_SIGNALS:
        signal.signal(number, lambda *_: ended.set())
    try:
        programs = find_programs()
        with (
            folder_for_reports() as reports,
            TemporaryDirectory(prefix="training-exporter-stack-") as folder,
            Children() as children,
        ):
            return run(children, Folders(Path(folder), reports), programs, options, ended)
    except (MissingProgramError, ConfigError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return USAGE_ERROR
    except ChildDiedError as error:
        print(f"Error: {error}\nEverything else was stopped.", file=sys.stderr)
        return 1


class Options(NamedTuple):
    """What was asked for.

    Attributes:
        port: of the exporter.
        linger: seconds from the end of the run to that of the stack, infinity is until Ctrl-C.
        of_demo: options that are the demo's.
    """

    port: int
    linger: float
    of_demo: Sequence[str]


class Folders(NamedTuple):
    """Where files go: those that end with the stack, and reports, which the demo tells to read."""

    temporary: Path
    reports: Path


def parsed(arguments: Sequence[str]) -> Options:
    parser = argparse.ArgumentParser(
        prog="make stack ARGS=...",
        description="The demo with Prometheus and Alertmanager beside it, until Ctrl-C.",
        epilog="All other options are the demo's: make demo ARGS=--help lists them.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--port", type=int, default=EXPORTER_PORT, help="of the exporter (default: %(default)s)"
    )
    parser.add_argument(
        "--linger",
        type=float,
        default=inf,
        metavar="SECONDS",
        help="until all ends after the run has ended (default: %(default)s, until Ctrl-C)",
    )
    known, others = parser.parse_known_args(arguments)
    if not 0 <= known.port <= 65535:
        parser.error(f"--port is 0 to 65535, not {known.port}")
    if not known.linger >= 0:
        parser.error(f"--linger is 0 or more seconds, not {known.linger:g}")
    return Options(known.port, known.linger, others)


def run(
    children: Children,
    folders: Folders,
    programs: Programs,
    options: Options,
    ended: Event,
) -> int:
    """Start all, say where they are, and watch over them; returns the exit code.

    Raises:
        ChildDiedError: Prometheus or Alertmanager did.
    """
    exporter_port = free_port(options.port)
    monitoring = start_monitoring(
        children,
        folders.temporary,
        programs,
        [f"127.0.0.1:{exporter_port}"],
        os.environ,
        ports=USUAL_PORTS,
        given_up=ended.is_set,
    )
    if ended.is_set():
        return 0
    say_where(monitoring, exporter_port, options)
    demo = start_demo(children, folders, exporter_port, options)
    return watch(demo, monitoring, ended, stays=isinf(options.linger))


def say_where(monitoring: Monitoring, exporter_port: int, options: Options) -> None:
    """The addresses, and which of them are not the usual ones."""
    exporter = f"http://localhost:{exporter_port}"
    wanted = {
        options.port: exporter,
        USUAL_PORTS.prometheus: monitoring.prometheus.url,
        USUAL_PORTS.alertmanager: monitoring.alertmanager.url,
    }
    for port, url in wanted.items():
        if not url.endswith(f":{port}"):
            print(f"Port {port} is taken; {url} is used instead.")
    print(
        WELCOME.format(
            exporter=exporter,
            alerts_page=alerts_page(monitoring.prometheus.url),
            alertmanager=monitoring.alertmanager.url,
            stop=f"Ctrl-C{WHEN_STAYING if isinf(options.linger) else ''}",
            messages=" and ".join(monitoring.messages_to)
            or f"nowhere: {' and '.join(SECRET_FILES)} are not set",
            alerts="\n".join(f"  {fault:10} {heard}" for fault, heard in ALERTS.items()),
        ),
        flush=True,
    )


def alerts_page(prometheus: str) -> str:
    """Upstream's page of alerts, Debian's old one, or where a package has neither, the API's."""
    pages = (f"{prometheus}/alerts", f"{prometheus}/classic/alerts")
    return next(filter(answers, pages), f"{prometheus}/api/v1/alerts")


def start_demo(children: Children, folders: Folders, port: int, options: Options) -> Child:
    """The real demo, at the terminal, reachable from this machine only."""
    program = Path(sys.executable).with_name("training-exporter")
    # PyTorch leaves a folder of its own in the one for temporary files.
    own = {"TRAINING_EXPORTER_ADDRESS": "127.0.0.1", "TMPDIR": str(folders.temporary)}
    own[REPORTS_FOLDER] = os.environ.get(REPORTS_FOLDER) or str(folders.reports)
    ours = ("--port", str(port), "--linger", str(options.linger))
    command: list[str | Path] = [program, "demo", *options.of_demo, *ours]
    return children.start("The demo", command, None, {**os.environ, **own})


def watch(demo: Child, monitoring: Monitoring, ended: Event, *, stays: bool) -> int:
    """Wait for the signal to end.

    If it is to stay, the end of the demo is no reason: killed, say, somebody wants to see what the
    alerts make of that.

    Returns:
        0 after the signal, else the exit code of the demo.

    Raises:
        ChildDiedError: Prometheus or Alertmanager did.
    """
    over = False
    while not ended.wait(POLL_SECONDS):
        for child, _ in (monitoring.prometheus, monitoring.alertmanager):
            if child.code is not None:
                raise child.died()
        if demo.code is not None and (demo.code == USAGE_ERROR or not stays):
            return demo.code
        if demo.code is not None and not over:
            over = True
            print(
                f"The demo ended with exit code {demo.code}. Prometheus and Alertmanager go on, so"
                " that you can see what they make of it; Ctrl-C ends them.",
                flush=True,
            )
    print("\nStopping.", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
