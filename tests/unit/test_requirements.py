# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import subprocess
import sys

import pytest

from training_exporter.requirements import needed_by

HUGGING_FACE = "training_exporter.integrations.huggingface"
TENSORBOARD = "training_exporter.sinks.tensorboard"


@pytest.mark.parametrize(
    ("module", "absent", "message"),
    [
        (
            HUGGING_FACE, "transformers",
            "PrometheusCallback needs transformers, which is not installed: pip install "
            "'training-exporter[transformers]'",
        ),
        (  # without which transformers can be imported
            HUGGING_FACE, "torch",
            "PrometheusCallback needs torch, which is not installed: pip install "
            "'training-exporter[transformers]'",
        ),
        (
            TENSORBOARD, "torch",
            "TensorBoardSink needs torch, which is not installed: pip install torch tensorboard",
        ),
        (
            TENSORBOARD, "tensorboard",
            "TensorBoardSink needs tensorboard, which is not installed: pip install torch "
            "tensorboard",
        ),
        (
            "training_exporter.sinks.wandb", "wandb",
            "WandbSink needs wandb, which is not installed: pip install wandb",
        ),
    ],
)  # fmt: skip
def test_a_part_says_what_it_needs(module: str, absent: str, message: str) -> None:
    """Who has not installed it is told how to."""
    code = f"import sys; sys.modules[{absent!r}] = None; import {module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"ModuleNotFoundError: {message}"


def test_another_module_that_is_missing_is_named_as_it_is() -> None:
    """It is not ours to explain."""
    with (
        pytest.raises(ModuleNotFoundError, match="No module named 'no_such'"),
        needed_by("Something", "torch", install="torch"),
    ):
        import no_such  # noqa: F401
