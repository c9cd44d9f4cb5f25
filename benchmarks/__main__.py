# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import argparse
import os
import sys
from importlib import import_module

NAMES = (
    "importing", "observe", "blackbox", "callback", "scrape", "layers", "gpu", "detection",
    "memory_growth", "replay", "rules", "sinks",
)  # fmt: skip
LONG = ("alert_latency", "false_alerts", "ranks")
"""Take minutes, and run only when they are named."""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES + LONG))
    parser.add_argument("--quick", action="store_true", help="only see that they run, as CI does")
    asked = parser.parse_args(arguments)
    if unknown := set(asked.names) - {*NAMES, *LONG}:
        valid = ", ".join(NAMES + LONG)
        print(f"unknown benchmark {', '.join(sorted(unknown))}; there are {valid}")
        return 2
    if asked.quick:
        os.environ["BENCHMARKS_QUICK"] = "1"  # before it is read, and for the processes they start
    report = import_module("benchmarks.report")
    report.print_machine()
    for name in asked.names or NAMES:
        print(f"\n== {name}", flush=True)
        import_module(f"benchmarks.{name}").main([])
    return 0


sys.exit(main(sys.argv[1:]))
