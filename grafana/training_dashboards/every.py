# SPDX-License-Identifier: Apache-2.0
"""All dashboards, in the order in which a reader meets them."""

from __future__ import annotations

from typing import Final

from training_dashboards.build import Dashboard
from training_dashboards.fleet import FLEET
from training_dashboards.hardware import HARDWARE
from training_dashboards.loss_by_step import LOSS_BY_STEP
from training_dashboards.training_run import TRAINING_RUN

DASHBOARDS: Final[tuple[Dashboard, ...]] = (TRAINING_RUN, LOSS_BY_STEP, FLEET, HARDWARE)
