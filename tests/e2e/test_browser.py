# SPDX-License-Identifier: Apache-2.0
"""The landing page in a real browser."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from training_exporter import StepSignals, TrainingExporter

pytestmark = pytest.mark.e2e

QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--virtual-time-budget=2000", "--enable-logging=stderr", "--log-level=0",
)  # fmt: skip


def test_a_browser_draws_the_page_without_complaint(
    binary: Callable[[str], str], tmp_path: Path
) -> None:
    """Run, state and a NaN are read from the page as drawn, and the console has no error: nothing
    is blocked by the page's own security policy."""
    exporter = TrainingExporter(port=0, address="127.0.0.1", run="browsed run", gpu_metrics=False)
    for step in range(1, 101):
        loss = math.nan if step == 100 else 2.0 / step
        exporter.observe(StepSignals(step, 1.7e9, loss=loss, grad_norm=0.5, max_steps=200))
    exporter.set_state("running")
    exporter.start()
    try:
        browser = [binary("chromium"), *QUIET, f"--user-data-dir={tmp_path}", "--dump-dom"]
        result = subprocess.run(
            [*browser, str(exporter.url)], capture_output=True, text=True, timeout=60, check=True
        )
    finally:
        exporter.close()

    assert "browsed run" in result.stdout
    assert "NaN" in result.stdout
    assert result.stdout.count("<svg") >= 2
    assert "CONSOLE" not in result.stderr
