# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import subprocess
import sys
from datetime import datetime, timedelta

SCRIPT = """
from training_exporter import StepSignals, TrainingExporter
exporter = TrainingExporter(port=0, address="127.0.0.1").start()
exporter.observe(StepSignals(1, 0.0, loss=float("nan")))
exporter.close()
"""


def stderr_of(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stderr


def test_a_script_without_logging_sees_address_and_alarms() -> None:
    """Each on a line of its own, with the time and the name of who speaks."""
    lines = [line for line in stderr_of(SCRIPT).splitlines() if line]

    assert len(lines) == 2
    spoken = [line.split(" ", 2) for line in lines]
    times = [datetime.strptime(f"{day} {time}", "%Y-%m-%d %H:%M:%S") for day, time, _ in spoken]
    assert datetime.now() - times[0] < timedelta(minutes=10)
    assert spoken[0][2].startswith(
        "training-exporter INFO: serving training metrics on http://127.0.0.1:"
    )
    assert spoken[1][2].startswith("training-exporter WARNING: non_finite at step 1: the loss or")


def test_a_script_with_logging_sees_them_once_in_its_own_format() -> None:
    """The fallback is silent as soon as somebody else handles the records."""
    setup = "import logging; logging.basicConfig(format='MINE %(name)s %(message)s')"
    lines = [line for line in stderr_of(setup + SCRIPT).splitlines() if line]

    assert len(lines) == 2
    assert all(line.startswith("MINE training_exporter ") for line in lines)


def test_a_warning_about_the_environment_says_who_warns_too() -> None:
    """It comes before anything else of the exporter does."""
    setup = "import os; os.environ['TRAINING_EXPORTER_PROT'] = '1'"

    assert "training-exporter WARNING: unknown variable TRAINING_EXPORTER_PROT" in stderr_of(
        setup + SCRIPT
    )
