# SPDX-License-Identifier: Apache-2.0
"""Time to import the package in a fresh interpreter, beside its largest dependency."""

from __future__ import annotations

import subprocess
import sys
from statistics import median

from benchmarks.report import often


def import_seconds(module: str) -> float:
    """Median over fresh interpreters."""
    code = f"from time import perf_counter as now; t = now(); import {module}; print(now() - t)"
    runs = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
        for _ in range(often(9))
    ]
    return median(runs)


def main(arguments: list[str]) -> None:
    for module in ("training_exporter", "prometheus_client"):
        print(f"import {module:32} {import_seconds(module) * 1e3:8.1f} ms")
