# SPDX-License-Identifier: Apache-2.0
"""Our page is the library's page, byte for byte."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf, nan

import pytest
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Enum,
    Gauge,
    Histogram,
    Info,
    Metric,
    Summary,
)
from prometheus_client.core import GaugeHistogramMetricFamily, StateSetMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar, Sample

from training_exporter.web import exposition
from training_exporter.web.exposition import render

OPENMETRICS = "application/openmetrics-text;version=1.0.0"
PROMETHEUS_2 = (
    f"{OPENMETRICS},application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
PROMETHEUS_3 = (
    f"{OPENMETRICS};escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
ACCEPTED = [
    "",
    "text/html,*/*",
    "text/plain;version=0.0.4",
    "text/plain;version=1.0.0;escaping=allow-utf-8",
    "text/plain;version=1.0.0;escaping=values",
    "application/openmetrics-text",
    OPENMETRICS,
    f"{OPENMETRICS};escaping=dots",
    "application/openmetrics-text;version=2.0.0;escaping=allow-utf-8",
    PROMETHEUS_2,
    PROMETHEUS_3,
]
NUMBERS = [0, 1, -1, True, 0.1, 1e-9, 999_999, 999_999.5, 1e6, 1234567, 1.5e9, 1e16, 1e300, -2e7]


class Custom(Collector):
    """Whatever a collector of a user's own may come up with."""

    def collect(self) -> Iterator[Metric]:
        numbers = Metric("numbers", 'a "help" with \\ and\nlines', "gauge")
        for i, value in enumerate([*NUMBERS, nan, inf, -inf]):
            numbers.add_sample("numbers", {"z": 'q"u\\o\nte', "a": str(i)}, value)
        yield numbers
        yield Metric("empty", "", "gauge")
        yield Metric("speed_ratio", "with a unit", "gauge", "ratio")
        timed = Metric("timed", "with a timestamp", "untyped")
        timed.add_sample("timed", {}, 1.5, timestamp=1234.5)
        yield timed
        dotted = Metric("learning.rate", "beyond the classic letters", "gauge")
        dotted.add_sample("learning.rate", {"group.name": "é"}, 1.0)
        yield dotted
        recorded = Metric("job:rate", "with a colon", "gauge")
        recorded.add_sample("job:rate", {}, 1.0)
        yield recorded
        yield GaugeHistogramMetricFamily(
            "sizes", "h", buckets=[("1", 2), ("+Inf", 3)], gsum_value=4
        )
        yield StateSetMetricFamily("parts", "s", {"on": True, "off": False})
        told = Metric("told", "an exemplar", "counter")
        told.samples.append(Sample("told_total", {}, 3, None, Exemplar({"step": "7"}, 3, 12.5)))
        yield told


@pytest.fixture
def registry() -> CollectorRegistry:
    """A registry with one of everything."""
    registry = CollectorRegistry(target_info={"service": 'a"b'})
    registry.register(Custom())
    Gauge("plain", "no labels", registry=registry).set(3)
    counter = Counter("hits", "c", ["path"], registry=registry)
    counter.labels("/").inc(2, {"trace": "1"})
    counter.labels('/"x"').inc()
    histogram = Histogram("latency_seconds", "h", ["path"], registry=registry)
    histogram.labels("/").observe(0.3, {"trace": "2"})
    Histogram("wait_seconds", "h", registry=registry).observe(7)
    Summary("size_bytes", "s", registry=registry).observe(2e7)
    Info("build", "i", registry=registry).info({"version": "1", "commit": "x\ny"})
    Enum("mood", "e", states=["good", "bad"], registry=registry).state("bad")
    return registry


@pytest.mark.parametrize("accept", ACCEPTED)
def test_the_page_is_the_librarys_page(registry: CollectorRegistry, accept: str) -> None:
    """Every format and escaping gives what prometheus_client would have written."""
    encode, content_type = choose_encoder(accept)
    assert render(registry, accept) == (encode(registry), content_type)
    assert render(registry, accept)[0] == encode(registry), "also with filled caches"


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_plain_families_are_written_here(
    registry: CollectorRegistry, accept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what is unusual goes to the library, which takes three times as long."""
    left: list[str] = []
    alone = exposition._Alone

    def noting(family: Metric) -> exposition._Alone:
        left.append(family.name)
        return alone(family)

    monkeypatch.setattr(exposition, "_Alone", noting)
    render(registry, accept)
    assert left == ["timed", "learning.rate", "job:rate", "told", "hits", "latency_seconds"]


def test_a_part_of_a_registry_can_be_rendered(registry: CollectorRegistry) -> None:
    """A restricted registry, the library's `?name[]=`, gives the wanted series only."""
    page, _ = render(registry.restricted_registry(["plain"]), "")
    assert page == b"# HELP plain no labels\n# TYPE plain gauge\nplain 3.0\n"


def test_a_version_that_is_none_gives_the_classic_format(registry: CollectorRegistry) -> None:
    """A client that asks for version "x" is answered, not failed."""
    assert render(registry, "application/openmetrics-text;version=x")[1].startswith("text/plain")


def test_what_the_library_refuses_is_refused() -> None:
    """A value that is no number raises as it does in the library."""

    class Broken(Collector):
        def collect(self) -> Iterator[Metric]:
            family = Metric("broken", "", "gauge")
            family.add_sample("broken", {}, "high")  # type: ignore[arg-type]
            yield family

    registry = CollectorRegistry()
    registry.register(Broken())
    with pytest.raises(ValueError, match="high"):
        render(registry, "")
