# SPDX-License-Identifier: Apache-2.0
"""A Docker engine of one's own for a while, and the machine as it was before."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

STARTS_WITHIN_SECONDS = 60
ENDS_WITHIN_SECONDS = 30
BRIDGE = "docker0"
CHAINS = {
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
}
"""Table of iptables that an engine writes into -> the chains that it has by itself."""


class Docker(NamedTuple):
    """An engine that runs."""

    environment: Mapping[str, str]
    """What `docker` and `docker-compose` need to find it."""
    gateway: str
    """The address under which containers reach this machine."""

    def __call__(self, *arguments: str | Path, given: IO[bytes] | None = None) -> str:
        """What a docker command says, to whom something may be given to read."""
        return checked("docker", *arguments, environment=self.environment, given=given)


def checked(
    *command: str | Path,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    given: IO[bytes] | None = None,
    seconds: float = 300,
) -> str:
    """The output of a program that has to succeed; the test fails with it if it does not."""
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=environment,
        cwd=folder,
        stdin=given,
        timeout=seconds,
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@contextmanager
def private_docker(folder: Path) -> Iterator[Docker]:
    """Run an engine with all that it has in a folder, which is removed with it.

    Whoever calls it is root, and there is no other engine on this machine: the bridge and the rules
    of iptables are taken away at the end.
    """
    rules = _rules()
    socket = folder / "docker.sock"
    environment = {
        **os.environ,
        "DOCKER_HOST": f"unix://{socket}",
        "DOCKER_CONFIG": str(folder / "config"),  # no credentials, no plugins of whoever runs this
        "DOCKER_BUILDKIT": "0",  # the engine's own builder; BuildKit's wants a plugin
    }
    log = folder / "dockerd.log"
    with log.open("wb") as output:
        engine = subprocess.Popen(
            _command(folder, socket), stdout=output, stderr=output, start_new_session=True
        )
    try:
        _wait(engine, environment, log)
        yield Docker(environment, _gateway())
    finally:
        engine.terminate()
        try:
            engine.wait(ENDS_WITHIN_SECONDS)
        finally:
            engine.kill()
            subprocess.run(["ip", "link", "delete", BRIDGE], capture_output=True)
            subprocess.run(["iptables-restore"], input=rules, text=True, check=True)
            shutil.rmtree(folder, ignore_errors=True)


def _rules() -> str:
    """What iptables-restore wants to hear for everything to be as it is now."""
    rules = checked("iptables-save")
    for table, chains in CHAINS.items():
        if f"*{table}\n" not in rules:  # an empty one is not saved, and so would not be emptied
            rules += "".join([f"*{table}\n", *(f":{c} ACCEPT\n" for c in chains), "COMMIT\n"])
    return rules


def _command(folder: Path, socket: Path) -> list[str]:
    return [
        "dockerd",
        f"--host=unix://{socket}",
        f"--data-root={folder / 'data'}",
        f"--exec-root={folder / 'exec'}",
        f"--pidfile={folder / 'pid'}",
        # What a container may inherit where this machine itself is one.
        "--default-ulimit=nofile=20000:20000",
        "--oom-score-adjust=0",
    ]


def _wait(engine: subprocess.Popen[bytes], environment: Mapping[str, str], log: Path) -> None:
    deadline = time.monotonic() + STARTS_WITHIN_SECONDS
    while subprocess.run(["docker", "info"], env=environment, capture_output=True).returncode != 0:
        up = engine.poll() is None and time.monotonic() < deadline
        assert up, f"dockerd did not come up:\n{log.read_text()[-3000:]}"
        time.sleep(0.2)


def _gateway() -> str:
    found = re.search(r"inet ([\d.]+)/", checked("ip", "-4", "address", "show", BRIDGE))
    assert found, f"{BRIDGE} has no address"
    return found.group(1)
