# SPDX-License-Identifier: Apache-2.0
"""The dashboard of a run, where alerts lead: how it is, and if it is not well, why."""

from __future__ import annotations

from typing import Final

from training_dashboards.build import Dashboard
from training_dashboards.events import events
from training_dashboards.queries import RANKS as S
from training_dashboards.rows.core import CORE
from training_dashboards.rows.exporter import EXPORTER
from training_dashboards.rows.gpus import GPUS
from training_dashboards.rows.layers import LAYERS
from training_dashboards.rows.ranks import RANKS
from training_dashboards.rows.stability import STABILITY
from training_dashboards.rows.strip import STRIP
from training_dashboards.rows.throughput import THROUGHPUT

TRAINING_RUN: Final = Dashboard(
    uid="training-run",
    title="Training run",
    description="How a training run is: loss, gradients, anomalies, speed, GPUs, layers and ranks.",
    selection=S,
    rows=[STRIP, CORE, STABILITY, THROUGHPUT, GPUS, LAYERS, RANKS, EXPORTER],
    annotations=events(S),
)
