# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from math import inf, isnan

import pytest

from training_exporter.detectors import HEALTHY, WARMING_UP, Finding, NonFinite
from training_exporter.signals import StepSignals


@pytest.mark.parametrize("bad", [float("nan"), inf, -inf])
@pytest.mark.parametrize("field", ["loss", "grad_norm"])
def test_any_bad_row_is_found_from_the_first_step(field: str, bad: float) -> None:
    """Loss or gradient norm, NaN or infinite, with what was seen as the value."""
    verdict = NonFinite().observe(
        StepSignals(1, 0.0, **{"loss": 1.0, "grad_norm": 1.0, field: bad})
    )
    assert isinstance(verdict, Finding)
    assert verdict.value == bad or isnan(bad)


def test_finite_is_healthy_and_nothing_is_unknown() -> None:
    """One known signal is enough; with none there is nothing to judge."""
    detector = NonFinite()
    assert detector.observe(StepSignals(1, 0.0)) is WARMING_UP
    assert detector.observe(StepSignals(2, 0.0, loss=-1e300)) is HEALTHY
    assert detector.observe(StepSignals(3, 0.0, grad_norm=0.0)) is HEALTHY
