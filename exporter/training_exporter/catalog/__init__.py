# SPDX-License-Identifier: Apache-2.0
"""Every metric and every label value that something matches on, written down once.

Code, dashboards and docs import these objects. YAML can only spell names, so a test compares what
it spells with this package. To rename a metric: edit it here, note it in the changelog, and keep
the old name for one minor version.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from training_exporter.catalog import gpu, layers, own, ranks, run

# One namespace for whoever uses the catalogue; the files only keep its parts apart.
from training_exporter.catalog.gpu import *
from training_exporter.catalog.labels import *
from training_exporter.catalog.layers import *
from training_exporter.catalog.metric import *
from training_exporter.catalog.own import *
from training_exporter.catalog.ranks import *
from training_exporter.catalog.run import *


def _metrics_of(*parts: object) -> tuple[Metric, ...]:
    return tuple(
        value for part in parts for value in vars(part).values() if isinstance(value, Metric)
    )


RUN_METRICS: Final = _metrics_of(run, ranks)
LAYER_METRICS: Final = _metrics_of(layers)
GPU_METRICS: Final = _metrics_of(gpu)
OWN_METRICS: Final = _metrics_of(own)
CATALOG: Final[Mapping[str, Metric]] = {
    metric.name: metric for metric in (*RUN_METRICS, *LAYER_METRICS, *GPU_METRICS, *OWN_METRICS)
}
"""Every metric of this package by name, in the order in which it is documented."""
