# SPDX-License-Identifier: Apache-2.0
"""Which of a step's forward passes are looked into."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from training_exporter.forensics.report import FIRST_MODULE
from training_exporter.integrations import module_watch
from training_exporter.integrations.module_watch import ModuleWatch


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> ModuleWatch:
    """One that remembers two passes."""
    monkeypatch.setattr(module_watch, "MOST_PASSES", 2)
    return ModuleWatch(nullcontext)


def forward(watch: ModuleWatch, step: int, value: float) -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.Tanh())
    with watch.watched(model, step):
        model(torch.full((1, 1), value))


def test_the_first_module_of_a_step(watch: ModuleWatch) -> None:
    """Of any of its micro-batches; healthy steps before it are no gap."""
    for step in (1, 2, 3):
        forward(watch, step, 1.0)
    forward(watch, 3, float("nan"))

    found, gaps = watch.take(3)

    assert found is not None
    assert (found.name, found.inputs_finite) == ("0", False)
    assert gaps == ()


def test_passes_that_were_forgotten_are_a_gap(watch: ModuleWatch) -> None:
    """A step of more micro-batches than are remembered may have had its NaN in the first."""
    forward(watch, 1, float("nan"))
    for _ in range(2):
        forward(watch, 1, 1.0)
    forward(watch, 2, 1.0)

    found, gaps = watch.take(1)

    assert found is None
    assert [(gap.what, "forgotten" in gap.why) for gap in gaps] == [(FIRST_MODULE, True)]
    assert watch.take(2)[1] == ()
