# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from tests.unit.gpu.stand_in import nvml, stand_in_library

__all__ = ["nvml", "stand_in_library"]


@pytest.fixture(autouse=True)
def gpu_metrics_as_users_have_them(
    clean_environment: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Elsewhere exporters of tests read no GPU."""
    monkeypatch.delenv("TRAINING_EXPORTER_GPU_METRICS")
