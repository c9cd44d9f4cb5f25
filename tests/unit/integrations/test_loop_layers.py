# SPDX-License-Identifier: Apache-2.0
"""The layers of a model in a loop written by hand."""

from __future__ import annotations

import gc
from typing import Any
from weakref import ref

import pytest
import torch
from torch import nn

from training_exporter import TrainingExporter


def watched_loop(**settings: Any) -> tuple[TrainingExporter, nn.Linear, torch.optim.SGD]:
    """A model whose gradients have a norm of 5 before they are clipped."""
    exporter = TrainingExporter(serve=False, layer_interval=1, **settings)
    model = nn.Linear(2, 1, bias=False)
    exporter.watch_model(model)
    model.weight.data.copy_(torch.tensor([[6.0, 8.0]]))
    return exporter, model, torch.optim.SGD(model.parameters(), lr=1.0)


def layer_value(exporter: TrainingExporter, name: str) -> float | None:
    labels = {**exporter.status.labels, "layer": "model"}
    return exporter.registry.get_sample_value(f"training_layer_{name}", labels)


@pytest.mark.parametrize("clipped", [True, False])
def test_layers_of_a_loop(clipped: bool) -> None:
    """A model that is named has its gradients read before they are clipped, and its change after
    the step."""
    exporter, model, optimizer = watched_loop()
    model.weight.grad = torch.tensor([[3.0, 4.0]])
    if clipped:
        exporter.clip_grad_norm_(model.parameters(), 0.5)
    else:
        exporter.observe_gradients(model)
    optimizer.step()
    exporter.step(loss=1.0)

    assert layer_value(exporter, "grad_norm") == pytest.approx(5.0)
    assert layer_value(exporter, "param_norm") == pytest.approx(10.0)
    ratio = 0.05 if clipped else 0.5
    assert layer_value(exporter, "update_ratio") == pytest.approx(ratio, rel=1e-4)
    assert not any(exporter.health.errors.values())


def test_the_layers_have_the_number_of_the_step() -> None:
    """Which a loop says only at its end."""
    exporter, model, optimizer = watched_loop()
    model.weight.grad = torch.tensor([[3.0, 4.0]])
    exporter.observe_gradients(model)
    optimizer.step()
    exporter.step(loss=1.0, step=501)

    value = exporter.registry.get_sample_value("training_layer_step", exporter.status.labels)
    assert value == 501


def test_a_step_that_is_given_up() -> None:
    """Its gradients are not those of the step that takes its place."""
    exporter, model, optimizer = watched_loop()
    model.weight.grad = torch.tensor([[30.0, 40.0]])
    exporter.observe_gradients(model)
    exporter._hand_loop().discard()
    model.weight.grad = torch.tensor([[3.0, 4.0]])
    exporter.observe_gradients(model)
    optimizer.step()
    exporter.step(loss=1.0)

    assert layer_value(exporter, "grad_norm") == pytest.approx(5.0)


def test_nothing_of_the_model_is_kept() -> None:
    """Once the run is over, its weights may go."""
    exporter, model, _ = watched_loop()
    model.weight.grad = torch.tensor([[3.0, 4.0]])
    exporter.observe_gradients(model)
    exporter.step(loss=1.0)
    exporter.finish()
    gone = ref(model.weight)
    del model, _

    gc.collect()
    assert gone() is None


def test_a_model_that_is_given_up_is_not_kept() -> None:
    """In the middle of a run, too: the next one may need its memory."""
    exporter, model, optimizer = watched_loop(gradient_histogram_interval=1)
    for step in (1, 2):
        model.weight.grad = torch.tensor([[3.0, 4.0]])
        exporter.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        exporter.step(loss=1.0, inputs=torch.ones(1), step=step)
    gone = ref(model), ref(model.weight)
    del model, optimizer
    gc.collect()
    exporter.clip_grad_norm_([torch.ones(1)], 1.0)
    exporter.step(loss=1.0)

    assert [known() for known in gone] == [None, None]
    assert layer_value(exporter, "grad_norm") == pytest.approx(5.0)
    assert not any(exporter.health.errors.values())


def test_no_layers_of_a_model_that_is_not_named() -> None:
    """Parameters alone have no names."""
    exporter = TrainingExporter(serve=False, layer_interval=1)
    model = nn.Linear(2, 1)
    model(torch.ones(2)).backward()
    exporter.clip_grad_norm_(model.parameters(), 1.0)
    exporter.step(loss=1.0)

    value = exporter.registry.get_sample_value("training_layer_step", exporter.status.labels)
    assert value is None


def test_values_by_magnitude_of_a_loop() -> None:
    """On the first step and at intervals, whatever number a step turns out to have."""
    exporter, model, optimizer = watched_loop(gradient_histogram_interval=2)
    counts = []
    for step in (501, 502, 503, 504):
        model.weight.grad = torch.tensor([[3.0, 0.0]])
        exporter.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        exporter.step(loss=1.0, step=step)
        labels = {**exporter.status.labels, "le": "4.0"}
        counts.append(
            exporter.registry.get_sample_value("training_gradient_magnitude_bucket", labels)
        )

    assert counts == [2, 2, 4, 4]
    assert (
        exporter.registry.get_sample_value("training_gradient_zero_ratio", exporter.status.labels)
        == 0.5
    )
    assert not any(exporter.health.errors.values())
