# SPDX-License-Identifier: Apache-2.0
"""An in-process library lives in other people's environments, and must be cheap to have around."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "pynvml", "numpy", "rich", "typer", "waitress")
MOST_ADDITIONS = 2_000_000
"""Of whole numbers in a loop, which take 0.1 s on a usual machine that does nothing else."""


def python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout


def test_nothing_heavy_is_imported() -> None:
    """Frameworks, drivers and servers are loaded when they are used."""
    loaded = python("import sys, training_exporter; print(*sys.modules)").split()

    assert not set(HEAVY) & set(loaded)


def test_import_is_quick() -> None:
    """Quicker than a loop in the same interpreter: machines that are slow or busy are so for both.
    Best of several, in processor time."""
    code = f"""
from time import process_time as now
start = now()
import training_exporter
imported = now()
total = 0
for number in range({MOST_ADDITIONS}):
    total += number
print((imported - start) / (now() - imported))
"""

    assert min(float(python(code)) for _ in range(8)) < 1.0


def test_a_loop_of_floats_loads_no_torch() -> None:
    """Detection and serving work where torch is not installed."""
    code = (
        "import sys; sys.modules['torch'] = None; from training_exporter import TrainingExporter;"
        "exporter = TrainingExporter(serve=False);"
        "[exporter.step(loss=1.0, tokens=8) for _ in range(3)];"
        "print(exporter.snapshot.totals.steps, sum(exporter.health.errors.values()))"
    )

    assert [*map(float, python(code).split())] == [3, 0]


@pytest.mark.parametrize("module", ["training_exporter.integrations.huggingface"])
def test_integrations_say_what_they_lack(module: str) -> None:
    """Without its framework an integration fails as an import does, by the framework's name."""
    code = f"import sys; sys.modules['transformers'] = None; import {module}"

    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert result.returncode == 1
    assert "transformers" in result.stderr
