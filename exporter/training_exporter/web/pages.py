# SPDX-License-Identifier: Apache-2.0
"""The pages of one run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from prometheus_client import CollectorRegistry

from training_exporter.catalog import STARTING, WEB_ERROR
from training_exporter.monitor import TrainingMonitor
from training_exporter.status import ExporterHealth, StatusBoard
from training_exporter.web.app import MetricsApp
from training_exporter.web.landing_page import render
from training_exporter.web.stack import dump


def pages_of(
    registry: CollectorRegistry,
    board: StatusBoard,
    monitor: TrainingMonitor,
    health: ExporterHealth,
    *,
    on_scraper: Callable[[str], object],
    debug_stack: bool,
) -> MetricsApp:
    """What is served of a run.

    Args:
        registry: what `/metrics` shows.
        board, monitor: what the landing page shows.
        health: counts what goes wrong, and what it costs.
        on_scraper: called with a name for a scraper, before a page is drawn for it.
        debug_stack: whether there is a page with the stacks of all threads.
    """

    def landing_page() -> str:
        return render(
            board.status,
            monitor.snapshot,
            gpus=board.gpus(),
            memory=board.memory,
            layers=board.layers.view(),
            overhead=health.overhead_seconds,
            training_thread=board.training_thread,
        )

    return MetricsApp(
        registry,
        landing_page,
        ready=lambda: board.status.state != STARTING,
        on_error=partial(health.count_error, WEB_ERROR),
        on_scrape=health.add_scrape,
        on_scraper=on_scraper,
        stack=(lambda: dump(board.training_thread)) if debug_stack else None,
    )
