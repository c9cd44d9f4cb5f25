# SPDX-License-Identifier: Apache-2.0
"""The examples run as they are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.e2e
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_trains_and_serves(example: Path, tmp_path: Path) -> None:
    """It ends well, says where to look, and meets no error of the exporter."""
    environment = {**os.environ, "TRAINING_EXPORTER_PORT": "0", "PYTHONWARNINGS": "ignore"}

    result = subprocess.run(
        [sys.executable, str(example)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )

    assert result.returncode == 0, result.stderr
    assert "serving training metrics on http://localhost:" in result.stderr
    assert "error in the exporter" not in result.stderr
