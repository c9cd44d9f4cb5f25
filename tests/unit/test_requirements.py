# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import subprocess
import sys

import pytest

from training_exporter.requirements import needed_by

PARTS = {
    "training_exporter.integrations.huggingface": "PrometheusCallback needs transformers, which is "
    "not installed: pip install 'training-exporter[transformers]'",
    "training_exporter.sinks.tensorboard": "TensorBoardSink needs torch, which is not installed: "
    "pip install torch tensorboard",
    "training_exporter.sinks.wandb": "WandbSink needs wandb, which is not installed: pip install "
    "wandb",
}


@pytest.mark.parametrize("module", PARTS)
def test_a_part_says_what_it_needs(module: str) -> None:
    """Who has not installed it is told how to."""
    absent = "import sys; sys.modules.update(torch=None, transformers=None, wandb=None)"
    code = f"{absent}; import {module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"ModuleNotFoundError: {PARTS[module]}"


def test_another_module_that_is_missing_is_named_as_it_is() -> None:
    """It is not ours to explain."""
    with (
        pytest.raises(ModuleNotFoundError, match="No module named 'no_such'"),
        needed_by("Something", "torch", install="torch"),
    ):
        import no_such  # noqa: F401
