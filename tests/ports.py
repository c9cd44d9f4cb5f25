# SPDX-License-Identifier: Apache-2.0
"""Ports for programs that are told where to listen, though tests run in several processes."""

from __future__ import annotations

import os
import re
import socket
from contextlib import suppress
from itertools import chain, count

from scripts.monitoring import Ports

FIRST, PORTS_EACH, PROCESSES = 23000, 500, 19
"""All are below those that the system gives to clients and to who asks for any port: one of these
may be somebody else's by the time that the program listens there."""

_number = int(re.sub(r"\D", "", os.environ.get("PYTEST_XDIST_WORKER", "")) or 0) % PROCESSES
_own = range(FIRST + PORTS_EACH * _number, FIRST + PORTS_EACH * (_number + 1))
_given = count()


def free_port(preferred: int | None = None) -> int:
    """A port of 127.0.0.1 that nobody listens on: the preferred one, or else one that no other
    process of these tests gives, and that this one has not given for long."""
    others = (_own[next(_given) % PORTS_EACH] for _ in _own)
    for port in others if preferred is None else chain((preferred,), others):
        with socket.socket() as candidate, suppress(OSError):
            candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            candidate.bind(("127.0.0.1", port))
            return port
    raise OSError(f"no port from {_own[0]} to {_own[-1]} is free on 127.0.0.1")


def monitoring_ports() -> Ports:
    """Where a Prometheus and its Alertmanager may listen."""
    return Ports(free_port(), free_port())
