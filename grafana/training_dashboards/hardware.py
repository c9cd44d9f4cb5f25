# SPDX-License-Identifier: Apache-2.0
"""All GPUs that training runs use, for those who have no exporter for hardware."""

from __future__ import annotations

from typing import Final

from training_dashboards.build import Dashboard
from training_dashboards.queries import RANKS as S
from training_dashboards.rows.hardware_now import NOW
from training_dashboards.rows.hardware_over_time import OVER_TIME

HARDWARE: Final = Dashboard(
    uid="training-hardware",
    title="Training hardware",
    description="All GPUs that training runs use, as the driver and as torch's allocator see them.",
    selection=S,
    rows=[NOW, *OVER_TIME],
)
