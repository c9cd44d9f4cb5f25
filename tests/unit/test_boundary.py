# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from training_exporter.boundary import StepBoundary
from training_exporter.catalog import LOG_ERROR, STEP_ERROR
from training_exporter.status import ExporterHealth


def test_an_error_goes_no_further_is_logged_once_and_counted_each_time(
    logs: pytest.LogCaptureFixture,
) -> None:
    """The training sees nothing; the log has one traceback; the metric has them all."""
    health = ExporterHealth()
    boundary = StepBoundary(health)

    for _ in range(3):
        with boundary.at(STEP_ERROR):
            raise ValueError("planted")

    assert health.errors[STEP_ERROR] == 3
    assert len(logs.records) == 1
    assert logs.records[0].exc_info


def test_another_class_or_place_is_logged_again(logs: pytest.LogCaptureFixture) -> None:
    """A second kind of trouble is not hidden by the first."""
    boundary = StepBoundary(ExporterHealth())

    for place, kind in [(STEP_ERROR, ValueError), (STEP_ERROR, KeyError), (LOG_ERROR, KeyError)]:
        with boundary.at(place):
            raise kind

    assert len(logs.records) == 3


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_what_the_user_does_passes(kind: type[BaseException]) -> None:
    """Ctrl-C and sys.exit are not ours to keep."""
    boundary = StepBoundary(ExporterHealth())

    with pytest.raises(kind), boundary.at(STEP_ERROR):
        raise kind


def test_only_the_outermost_block_counts_its_time() -> None:
    """Nested blocks are not counted twice."""
    health = ExporterHealth()
    boundary = StepBoundary(health)

    with boundary.at(STEP_ERROR):
        with boundary.at(STEP_ERROR):
            pass
        inside = health.step_seconds

    assert inside == 0
    assert health.step_seconds > 0
