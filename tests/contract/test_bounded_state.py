# SPDX-License-Identifier: Apache-2.0
"""A run of a million steps takes no more memory than one of thirty thousand."""

from __future__ import annotations

import gc
import sys
from random import Random

import pytest

from training_exporter import StepSignals, TrainingExporter
from training_exporter.config import PROFILE_NAMES

FIRST, LATER = 30_000, 90_000


def eventful_step(step: int, random: Random) -> StepSignals:
    """A step of a run that has seen everything: spikes, NaN, skipped steps, changing rates."""
    loss = float("nan") if step % 997 == 0 else 2 + random.random() + 50 * (step % 1009 == 0)
    return StepSignals(
        step, 1.7e9 + step, loss=loss, grad_norm=random.random() * (1 + 99 * (step % 1013 == 0)),
        clip_threshold=0.5, learning_rates={"0": 1e-3 / step}, loss_scale=2.0 ** (step % 7),
        epoch=step / 1000, max_steps=10**6, tokens=100, samples=2, step_seconds=random.random(),
        data_wait_seconds=0.01, memory_allocated_bytes=1e9 + step,
    )  # fmt: skip


def deep_size(root: object) -> int:
    """Bytes of all objects that can be reached, classes and modules apart."""
    seen: dict[int, object] = {}
    queue = [root]
    while queue:
        thing = queue.pop()
        if id(thing) in seen or isinstance(thing, type | type(sys)) or callable(thing):
            continue
        seen[id(thing)] = thing
        queue.extend(gc.get_referents(thing))
    return sum(sys.getsizeof(thing) for thing in seen.values())


@pytest.mark.parametrize("profile", PROFILE_NAMES)
def test_memory_is_constant(profile: str) -> None:
    """Whatever is kept of the past is bounded, in every detector and in the monitor."""
    exporter = TrainingExporter(serve=False, profile=profile)
    random = Random(0)
    sizes = []
    for steps in (range(1, FIRST), range(FIRST, LATER)):
        for step in steps:
            exporter.observe(eventful_step(step, random))
            if step % 500 == 0:
                exporter.observe_evaluation({"loss": random.random()}, dataset=f"set {step}")
                exporter.observe_logged({f"value {step}": 1.0})
        sizes.append(deep_size((exporter.monitor, exporter.status, exporter.health.errors)))

    assert sizes[1] < sizes[0] * 1.2
