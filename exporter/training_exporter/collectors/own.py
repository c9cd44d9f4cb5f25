# SPDX-License-Identifier: Apache-2.0
"""The exporter's own health."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import Metric as Family
from prometheus_client.registry import Collector

from training_exporter import catalog
from training_exporter._version import __version__
from training_exporter.collectors.families import Families, empty_family
from training_exporter.status import ExporterHealth

RENDERED = (
    catalog.BUILD_INFO,
    catalog.ERRORS,
    catalog.OVERHEAD,
    catalog.DROPPED_OBSERVATIONS,
    catalog.DROPPED_SERIES,
    catalog.DROPPED_LAYER_PASSES,
    catalog.DROPPED_PHASES,
    catalog.RESUME_FAILED,
    catalog.SINK_DROPPED,
)


class OwnCollector(Collector):
    """Renders the counters of `ExporterHealth`."""

    def __init__(self, labels: Callable[[], Mapping[str, str]], health: ExporterHealth) -> None:
        self._labels = labels
        self._health = health

    def describe(self) -> Iterator[Family]:
        return map(empty_family, RENDERED)

    def collect(self) -> Iterator[Family]:
        build, health = Families(self._labels()), self._health
        versions = {"version": __version__, "python_version": platform.python_version()}
        yield from build.one(catalog.BUILD_INFO, 1.0, **versions)
        yield from build.by_label(catalog.ERRORS, {**health.errors})
        yield from build.by_label(catalog.OVERHEAD, health.overhead_seconds)
        yield from build.one(catalog.DROPPED_OBSERVATIONS, health.dropped_observations)
        yield from build.one(catalog.DROPPED_SERIES, health.dropped_series)
        yield from build.one(catalog.DROPPED_LAYER_PASSES, health.dropped_layer_passes)
        yield from build.one(catalog.DROPPED_PHASES, health.dropped_phases)
        yield from build.by_label(catalog.RESUME_FAILED, {**health.resume_failures})
        yield from build.by_label(catalog.SINK_DROPPED, {**health.sink_drops()})
