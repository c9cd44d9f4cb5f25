# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re

import pytest

from training_exporter.catalog import ANOMALY_KINDS, CATALOG, COMMON_LABELS, UNIT_SUFFIXES, Metric

METRICS = pytest.mark.parametrize("metric", CATALOG.values(), ids=lambda metric: metric.name)


@METRICS
def test_names_follow_the_conventions(metric: Metric) -> None:
    """Prefix, snake case, `_total` on counters and only there, no unit that is not a base unit."""
    assert re.fullmatch(r"training_[a-z0-9_]+", metric.name)
    assert (metric.kind == "counter") == metric.name.endswith("_total")
    stem = metric.name.removesuffix("_total").rpartition("_")[2]
    assert stem not in {"ms", "milliseconds", "minutes", "hours", "mb", "gb", "percent", "count"}
    assert metric.unit in {"", *UNIT_SUFFIXES}


@METRICS
def test_every_metric_is_explained(metric: Metric) -> None:
    """A sentence of help, and a section of the documentation."""
    assert metric.help.endswith(".")
    assert metric.section


@METRICS
def test_labels_are_its_own(metric: Metric) -> None:
    """No label twice, none of the common ones, and closed values only for labels it has."""
    assert len(set(metric.labels)) == len(metric.labels)
    assert not set(metric.labels) & set(COMMON_LABELS)
    assert set(metric.values) <= set(metric.labels)


def test_kinds_are_explained() -> None:
    """Each kind of anomaly has a sentence that the log and the page show."""
    assert all(ANOMALY_KINDS.values())
