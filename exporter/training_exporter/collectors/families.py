# SPDX-License-Identifier: Apache-2.0
"""From the catalogue's objects to prometheus_client's metric families."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from prometheus_client import Metric as Family
from prometheus_client.samples import Sample

from training_exporter.catalog import Metric


def empty_family(metric: Metric) -> Family:
    """The family without samples, for `describe`."""
    name = metric.name.removesuffix("_total") if metric.kind == "counter" else metric.name
    return Family(name, metric.help, metric.kind)


class Families:
    """Builds families whose series all carry the same common labels.

    A value of None leaves its series out: what is not known is absent, not zero.
    """

    def __init__(self, common_labels: Mapping[str, str]) -> None:
        self._common = dict(common_labels)

    def one(self, metric: Metric, value: float | None, **labels: str) -> Iterator[Family]:
        """A family of a single series, its labels by name."""
        return self.several(metric, [([labels[name] for name in metric.labels], value)])

    def by_label(self, metric: Metric, values: Mapping[str, float | None]) -> Iterator[Family]:
        """A family with one series for each value of its only label."""
        return self.several(metric, [((of,), value) for of, value in values.items()])

    def several(
        self, metric: Metric, rows: Iterable[tuple[Sequence[str], float | None]]
    ) -> Iterator[Family]:
        """A family from rows of (label values in the catalogue's order, value)."""
        family, common, names, name = empty_family(metric), self._common, metric.labels, metric.name
        family.samples = [
            _sample(name, {**common, **dict(zip(names, labels, strict=True))}, value)
            for labels, value in rows
            if value is not None
        ]
        if family.samples:
            yield family

    def histogram(
        self, metric: Metric, bounds: Sequence[float], counts: Sequence[int], total: float
    ) -> Iterator[Family]:
        """A histogram from the count in each bucket; the last count has no upper bound."""
        family = empty_family(metric)
        cumulated = 0
        for bound, count in zip([*map(str, bounds), "+Inf"], counts, strict=True):
            cumulated += count
            labels = {**self._common, "le": bound}
            family.samples.append(Sample(f"{metric.name}_bucket", labels, cumulated))
        family.samples.append(Sample(f"{metric.name}_count", self._common, cumulated))
        family.samples.append(Sample(f"{metric.name}_sum", self._common, total))
        yield family


def _sample(name: str, labels: dict[str, str], value: float) -> Sample:
    """A sample at half the cost of calling its class, which counts on a page of thousands."""
    sample: Sample = tuple.__new__(Sample, (name, labels, value, None, None, None))
    return sample
