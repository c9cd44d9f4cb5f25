# SPDX-License-Identifier: Apache-2.0
"""What the scrape reads. Each collector renders readings that already lie ready."""

from __future__ import annotations

from functools import partial
from weakref import WeakKeyDictionary

from prometheus_client import CollectorRegistry

from training_exporter.catalog import COLLECTOR_ERROR
from training_exporter.collectors.cuda_memory import CudaMemoryCollector
from training_exporter.collectors.gpu import GpuCollector
from training_exporter.collectors.guard import GuardedCollectors
from training_exporter.collectors.layers import LayerCollector
from training_exporter.collectors.own import OwnCollector
from training_exporter.collectors.training import TrainingCollector
from training_exporter.monitor import TrainingMonitor
from training_exporter.status import ExporterHealth, StatusBoard

_registered: WeakKeyDictionary[CollectorRegistry, GuardedCollectors] = WeakKeyDictionary()


def registered(
    registry: CollectorRegistry | None,
    board: StatusBoard,
    monitor: TrainingMonitor,
    health: ExporterHealth,
) -> CollectorRegistry:
    """A registry with the collectors of an exporter in it, instead of those of one before; a new
    one where none is given."""
    registry = CollectorRegistry() if registry is None else registry
    before = _registered.pop(registry, None)
    if before is not None:
        registry.unregister(before)
    _registered[registry] = ours = collectors_of(board, monitor, health)
    registry.register(ours)
    return registry


def collectors_of(
    board: StatusBoard, monitor: TrainingMonitor, health: ExporterHealth
) -> GuardedCollectors:
    """All collectors of one exporter, behind one guard."""

    def labels() -> dict[str, str]:
        return board.status.labels

    collectors = {
        "training": TrainingCollector(lambda: board.status, lambda: monitor.snapshot),
        "layers": LayerCollector(labels, lambda: board.layers.view(), lambda: board.magnitudes),
        "gpu": GpuCollector(labels, lambda: board.gpus()),
        "cuda_memory": CudaMemoryCollector(labels, lambda: board.memory),
        "exporter": OwnCollector(labels, health),
    }
    return GuardedCollectors(collectors, labels, partial(health.count_error, COLLECTOR_ERROR))
