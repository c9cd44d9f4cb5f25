# SPDX-License-Identifier: Apache-2.0
"""What is known of a run before it begins."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from types import MappingProxyType

from training_exporter.catalog import RUN_INFO
from training_exporter.config import ExporterConfig
from training_exporter.lifecycle.ranks import placement
from training_exporter.lifecycle.resume import launcher_restarts
from training_exporter.status import RunStatus
from training_exporter.values import clean_text


def info_labels(info: Mapping[str, object]) -> dict[str, str]:
    """Labels of `training_run_info`.

    Raises:
        ValueError: it has no such label.
    """
    unknown = set(info) - set(RUN_INFO.labels)
    if unknown:
        valid = ", ".join(RUN_INFO.labels)
        raise ValueError(f"training_run_info has the labels {valid}, not {', '.join(unknown)}")
    return {name: clean_text(value) for name, value in info.items()}


def first_status(config: ExporterConfig, environ: Mapping[str, str]) -> RunStatus:
    """What settings, launcher and machine say."""
    where = placement(environ)
    info = {
        "profile": config.profile,
        "host": socket.gethostname(),
        "world_size": where.world_size,
        "local_rank": where.local_rank,
        "node": where.node,
    }
    known = {name: str(value) for name, value in info.items() if value is not None}
    return RunStatus(
        run=clean_text(config.run or "training"),
        rank=where.rank if config.rank is None else config.rank,
        info=MappingProxyType(known),
        peak_flops=config.peak_flops,
        restarts=launcher_restarts(environ),
    )
