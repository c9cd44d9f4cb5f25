# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import sys
from importlib import import_module

from benchmarks.report import print_machine

NAMES = (
    "importing", "observe", "blackbox", "callback", "scrape", "layers", "gpu", "detection",
    "memory_growth", "replay", "rules", "sinks",
)  # fmt: skip
LONG = ("alert_latency", "false_alerts", "ranks")
"""Take minutes, and run only when they are named."""


def main(names: list[str]) -> int:
    unknown = set(names) - {*NAMES, *LONG}
    if unknown:
        valid = ", ".join(NAMES + LONG)
        print(f"unknown benchmark {', '.join(sorted(unknown))}; there are {valid}")
        return 2
    print_machine()
    for name in names or NAMES:
        print(f"\n== {name}", flush=True)
        import_module(f"benchmarks.{name}").main([])
    return 0


sys.exit(main(sys.argv[1:]))
