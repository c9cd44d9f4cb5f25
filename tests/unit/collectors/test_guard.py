# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily

from training_exporter.collectors.guard import GuardedCollectors


class Fine:
    def describe(self) -> Iterator[GaugeMetricFamily]:
        yield GaugeMetricFamily("fine", "")

    def collect(self) -> Iterator[GaugeMetricFamily]:
        yield GaugeMetricFamily("fine", "", 1)


class Flaky:
    """Fails halfway while `broken` is set."""

    broken = True

    def describe(self) -> Iterator[GaugeMetricFamily]:
        yield GaugeMetricFamily("flaky", "")

    def collect(self) -> Iterator[GaugeMetricFamily]:
        yield GaugeMetricFamily("flaky", "", 1)
        if self.broken:
            raise OSError("fell off the bus")


@pytest.fixture
def errors() -> list[int]:
    return []


def test_a_failing_collector_loses_only_itself(
    errors: list[int], logs: pytest.LogCaptureFixture
) -> None:
    """The page is served, says who failed, and has nothing half-done; the log has it once."""
    page = CollectorRegistry()
    page.register(
        GuardedCollectors({"flaky": Flaky(), "fine": Fine()}, dict, lambda: errors.append(1))
    )

    for _ in range(3):
        assert page.get_sample_value("fine") == 1
    success = [
        page.get_sample_value("training_exporter_collector_success", {"collector": name})
        for name in ("flaky", "fine")
    ]

    assert success == [0, 1]
    assert page.get_sample_value("flaky") is None
    assert len(logs.records) == 1
    assert len(errors) >= 3


def test_it_comes_back_by_itself_and_a_new_failure_is_logged_again(
    errors: list[int], logs: pytest.LogCaptureFixture
) -> None:
    """Recovery needs nobody, and does not silence what comes after it."""
    flaky = Flaky()
    guard = GuardedCollectors({"flaky": flaky}, dict, lambda: errors.append(1))

    list(guard.collect())
    flaky.broken = False
    names = [family.name for family in guard.collect()]
    flaky.broken = True
    list(guard.collect())

    assert "flaky" in names
    assert len(logs.records) == 2


def test_registration_reads_nothing() -> None:
    """A registry asks `describe`, which must not touch what the collector reads."""
    page = CollectorRegistry(auto_describe=True)

    page.register(GuardedCollectors({"flaky": Flaky()}, dict, lambda: pytest.fail("was read")))
