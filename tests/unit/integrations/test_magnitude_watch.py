# SPDX-License-Identifier: Apache-2.0
"""When the values in gradients are counted."""

from __future__ import annotations

import torch
from torch import nn

from training_exporter.integrations.magnitude_watch import MagnitudeWatch
from training_exporter.layers.magnitudes import Magnitudes


class Watcher:
    def __init__(self) -> None:
        self.found: list[Magnitudes] = []

    def observe_layers(self, state: None, *, dropped: int) -> None:
        raise AssertionError("nothing is dropped on a CPU")

    def observe_magnitudes(self, found: Magnitudes) -> None:
        self.found.append(found)


def test_gradients_are_counted_once_a_step() -> None:
    """A second clipping finds gradients that were clipped already."""
    model, watcher = nn.Linear(2, 1), Watcher()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    watch = MagnitudeWatch(watcher, 1)
    for step in (1, 1, 2):
        watch.begin_step(step, model)
        watch.before_clipping()
        watch.before_clipping()
        watch.collect()

    assert [found.values for found in watcher.found] == [3, 3]
