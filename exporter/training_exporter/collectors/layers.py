# SPDX-License-Identifier: Apache-2.0
"""Renders the last pass over the layers of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client import Metric as Family
from prometheus_client.registry import Collector

from training_exporter import catalog
from training_exporter.collectors.families import Families, empty_family
from training_exporter.layers.magnitudes import BOUNDS, MagnitudeTotals
from training_exporter.layers.readings import LayerReading
from training_exporter.layers.shown import LayerView


class LayerCollector(Collector):
    """Metrics of the layers. Without a pass there are none.

    Args:
        labels: returns the common labels.
        view: returns the last pass by layer.
        magnitudes: returns how large the values in the gradients were.
    """

    def __init__(
        self,
        labels: Callable[[], Mapping[str, str]],
        view: Callable[[], LayerView | None],
        magnitudes: Callable[[], MagnitudeTotals] = MagnitudeTotals,
    ) -> None:
        self._labels = labels
        self._view = view
        self._magnitudes = magnitudes

    def describe(self) -> Iterator[Family]:
        return map(empty_family, catalog.LAYER_METRICS)

    def collect(self) -> Iterator[Family]:
        build, view = Families(self._labels()), self._view()
        if view is not None:
            yield from _layers(build, view)
        yield from _sizes(build, self._magnitudes())


def _layers(build: Families, view: LayerView) -> Iterator[Family]:
    reading = view.reading
    yield from build.one(catalog.LAYER_STEP, reading.step)
    yield from build.one(catalog.LAYERS_FOLDED, reading.folded)
    yield from _norms(build, reading)
    for metric, values in (
        (catalog.LAYER_UPDATE_RATIO, reading.update_ratio),
        (catalog.LAYER_GRAD_TO_PARAM_RATIO, reading.grad_to_param_ratio),
        (catalog.LAYER_NON_FINITE, view.non_finite),
    ):
        yield from build.by_label(metric, _named(reading, values))
    yield from _worst(build, reading)
    if view.first is not None:
        first = view.first
        yield from build.one(catalog.FIRST_NON_FINITE_LAYER_STEP, first.step, layer=first.layer)


def _sizes(build: Families, totals: MagnitudeTotals) -> Iterator[Family]:
    """Of the gradients' values."""
    last = totals.last
    if last is None:
        return
    if any(totals.counts):
        yield from build.histogram(catalog.GRADIENT_MAGNITUDE, BOUNDS, totals.counts, totals.sum)
    for metric, values in (
        (catalog.GRADIENT_ZERO_RATIO, last.zeros),
        (catalog.GRADIENT_UNDERFLOW_RATIO, last.flushed),
        (catalog.GRADIENT_SUBNORMAL_RATIO, last.subnormal),
    ):
        yield from build.one(metric, values / last.values)


def _norms(build: Families, reading: LayerReading) -> Iterator[Family]:
    """The norms of whole layers; of the others the squares, which can be added up over ranks."""
    for norm, square, values in (
        (catalog.LAYER_GRAD_NORM, catalog.LAYER_GRAD_SHARD_SQUARES, reading.grad_norm),
        (catalog.LAYER_PARAM_NORM, catalog.LAYER_PARAM_SHARD_SQUARES, reading.param_norm),
    ):
        pairs = list(zip(values, reading.shards, strict=True))
        whole = [None if shard else value for value, shard in pairs]
        squares = [value * value if shard and value is not None else None for value, shard in pairs]
        yield from build.by_label(norm, _named(reading, whole))
        yield from build.by_label(square, _named(reading, squares))


def _worst(build: Families, reading: LayerReading) -> Iterator[Family]:
    if any(reading.shards):  # which layer it is only the sum over the ranks can tell
        return
    worst = reading.worst()
    if worst is not None:
        norm = reading.grad_norm[reading.layers.index(worst)]
        yield from build.one(catalog.WORST_LAYER_GRAD_NORM, norm, layer=worst)


def _named(reading: LayerReading, values: Sequence[float | None]) -> dict[str, float | None]:
    return dict(zip(reading.layers, values, strict=True))
