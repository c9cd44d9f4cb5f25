# SPDX-License-Identifier: Apache-2.0
"""Prometheus and Alertmanager with the shipped configuration, on this machine and for a while."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from scripts.alertmanager_config import (
    COMMITTED,
    as_text,
    derive,
    load,
    notifier_names,
    secrets_from_environment,
    version_of,
    write,
)
from scripts.processes import Child, Children, free_port, wait_until_ready

ROOT = Path(__file__).parent.parent
SHIPPED = ROOT / "prometheus" / "prometheus.yml"
HOW_TO_GET = "apt-get install prometheus prometheus-alertmanager, or put upstream's on PATH"


class MissingProgramError(Exception):
    """A program is not on this machine; the message is for the user."""


class Programs(NamedTuple):
    prometheus: Path
    alertmanager: Path


class Ports(NamedTuple):
    prometheus: int
    alertmanager: int


USUAL_PORTS = Ports(9090, 9093)
ANY_PORTS = Ports(0, 0)


class Service(NamedTuple):
    """A program that runs, and its address."""

    child: Child
    url: str


class Monitoring(NamedTuple):
    """A Prometheus and an Alertmanager that run."""

    prometheus: Service
    alertmanager: Service
    messages_to: Sequence[str]
    """Kinds of receiver that messages go to, such as "slack"."""


def find_programs() -> Programs:
    """Prometheus and Alertmanager on PATH, the latter by upstream's name or by Debian's.

    Raises:
        MissingProgramError: one of them is not there.
    """
    return Programs(_found("prometheus"), _found("alertmanager", "prometheus-alertmanager"))


def _found(*names: str) -> Path:
    for name in names:
        if path := shutil.which(name):
            return Path(path)
    raise MissingProgramError(f"{' or '.join(names)} was not found; get it with: {HOW_TO_GET}")


def start_monitoring(
    children: Children,
    folder: Path,
    programs: Programs,
    targets: Sequence[str],
    environ: Mapping[str, str],
    *,
    ports: Ports = ANY_PORTS,
    given_up: Callable[[], bool] = lambda: False,
) -> Monitoring:
    """Start both, and wait until they are ready.

    Args:
        children: what ends them.
        folder: an existing folder for their configuration, data and logs.
        programs: the programs to start.
        targets: host:port of each page to scrape.
        environ: has the addresses of Slack and Discord, if there are any.
        ports: where to listen, on 127.0.0.1; one that is taken means a free one.
        given_up: whether to stop waiting.

    Raises:
        ChildDiedError: one of them did not come up.
    """
    prometheus, alertmanager = free_port(ports.prometheus), free_port(ports.alertmanager)
    messages_to = write_alertmanager_config(folder, programs.alertmanager, environ)
    (folder / "prometheus.yml").write_text(prometheus_config(targets, f"127.0.0.1:{alertmanager}"))

    def start(name: str, command: Sequence[str | Path], port: int) -> Service:
        child = children.start(name, command, folder / f"{name.lower()}.log")
        return Service(child, f"http://localhost:{port}")

    monitoring = Monitoring(
        start("Prometheus", _prometheus(programs.prometheus, folder, prometheus), prometheus),
        start(
            "Alertmanager", _alertmanager(programs.alertmanager, folder, alertmanager), alertmanager
        ),
        messages_to,
    )
    for child, url in (monitoring.prometheus, monitoring.alertmanager):
        wait_until_ready(child, f"{url}/-/ready", given_up=given_up)
    return monitoring


def write_alertmanager_config(
    folder: Path, alertmanager: Path, environ: Mapping[str, str]
) -> list[str]:
    """Derive the configuration for this Alertmanager, with its secrets in private files.

    Returns:
        which kinds of receiver messages go to.

    Raises:
        ConfigError: a secret is no address.
    """
    secrets = folder / "secrets"
    secrets_from_environment(environ, secrets)
    config = derive(
        load(COMMITTED / "alertmanager.yml"),
        secrets=secrets,
        templates=str(COMMITTED / "templates"),
        version=version_of(str(alertmanager)),
    )
    write(folder / "alertmanager.yml", as_text(config))
    return notifier_names(config)


def prometheus_config(targets: Sequence[str], alertmanager: str) -> str:
    """The shipped configuration with other addresses, which works from any folder."""
    config: dict[str, Any] = yaml.safe_load(SHIPPED.read_text())
    config["rule_files"] = [str(SHIPPED.parent / pattern) for pattern in config["rule_files"]]
    config["alerting"]["alertmanagers"] = [{"static_configs": [{"targets": [alertmanager]}]}]
    for job in config["scrape_configs"]:
        del job["file_sd_configs"]
        job["static_configs"] = [{"targets": list(targets)}]
    return str(yaml.safe_dump(config, sort_keys=False))


def _prometheus(program: Path, folder: Path, port: int) -> list[str | Path]:
    return [
        program,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'prometheus'}",
        f"--web.listen-address=127.0.0.1:{port}",
        f"--web.external-url=http://localhost:{port}",
    ]


def _alertmanager(program: Path, folder: Path, port: int) -> list[str | Path]:
    return [
        program,
        f"--config.file={folder / 'alertmanager.yml'}",
        f"--storage.path={folder / 'alertmanager'}",
        f"--web.listen-address=127.0.0.1:{port}",
        f"--web.external-url=http://localhost:{port}",
        "--cluster.listen-address=",  # one alone needs no gossip, and no port for it
    ]
