# SPDX-License-Identifier: Apache-2.0
"""The scrape's error boundary: a collector that fails loses only its own series."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from time import perf_counter

from prometheus_client import Metric as Family
from prometheus_client.registry import Collector

from training_exporter.catalog import COLLECTOR_DURATION, COLLECTOR_SUCCESS
from training_exporter.collectors.families import Families, empty_family

logger = logging.getLogger("training_exporter")


class GuardedCollectors(Collector):
    """Runs the collectors one after the other, and says how each of them did.

    A failure is logged with its traceback when it begins, counted through `on_error` each time,
    and shown by `training_exporter_collector_success`.

    Args:
        collectors: the collectors by the name that the label `collector` gives them.
        labels: returns the common labels.
        on_error: called for each failure.
    """

    def __init__(
        self,
        collectors: Mapping[str, Collector],
        labels: Callable[[], Mapping[str, str]],
        on_error: Callable[[], object],
    ) -> None:
        self._collectors = dict(collectors)
        self._labels = labels
        self._on_error = on_error
        self._failing: set[str] = set()

    def describe(self) -> Iterator[Family]:
        for collector in self._collectors.values():
            yield from collector.describe()  # type: ignore[attr-defined]  # ours all have it
        yield empty_family(COLLECTOR_SUCCESS)
        yield empty_family(COLLECTOR_DURATION)

    def collect(self) -> Iterator[Family]:
        success: dict[str, float | None] = {}
        duration: dict[str, float | None] = {}
        for name, collector in self._collectors.items():
            started = perf_counter()
            families = self._run(name, collector)
            duration[name] = perf_counter() - started
            success[name] = float(families is not None)
            yield from families or ()
        build = Families(self._labels())
        yield from build.by_label(COLLECTOR_SUCCESS, success)
        yield from build.by_label(COLLECTOR_DURATION, duration)

    def _run(self, name: str, collector: Collector) -> Iterable[Family] | None:
        try:
            families = list(collector.collect())
        except Exception:  # the boundary: the other collectors' series must still be served
            self._on_error()
            if name not in self._failing:
                logger.exception("the collector %r failed; its metrics are absent", name)
            self._failing.add(name)
            return None
        self._failing.discard(name)
        return families
