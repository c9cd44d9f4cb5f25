# SPDX-License-Identifier: Apache-2.0
"""When layers are looked at, and what is remembered of it."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, nan

import pytest
import torch
from torch import nn

from training_exporter import ExporterConfig, StepSignals
from training_exporter.integrations.layer_watch import LayerWatch
from training_exporter.layers.histograms import RawHistograms
from training_exporter.layers.readings import ParameterNorms, ParameterTable
from training_exporter.layers.shown import LayerState
from training_exporter.monitor import TrainingMonitor
from training_exporter.snapshot import Snapshot

TABLE = ParameterTable(
    ("embed.weight", "layers.0.up.weight", "head.weight"), (False,) * 3, (1,) * 3
)
FINE = (1.0, 1.0, 1.0)


class Pass:
    """Finds what the test says, as late as the test says."""

    def __init__(self, model: object) -> None:
        self.model = model
        self.dropped = 0
        self.began: list[tuple[int, object]] = []
        self.ended = 0
        self.waited = False
        self.ready: list[ParameterNorms] = []

    def before_clipping(self, step: int, loss_scale: object = None) -> None:
        self.began.append((step, loss_scale))

    def after_step(self) -> None:
        self.ended += 1

    def collect(self, *, wait: bool = False) -> list[ParameterNorms]:
        self.waited = self.waited or wait
        ready, self.ready = self.ready, []
        return ready

    def find(self, step: int, gradients: Sequence[float] = FINE) -> None:
        self.ready.append(ParameterNorms(step, TABLE, gradients, FINE, FINE, step))


class Watcher:
    """Steps as the test tells them, and what was handed on."""

    def __init__(self) -> None:
        self.monitor = TrainingMonitor([])
        self.states: list[LayerState] = []
        self.dropped = 0
        self.histogram_interval = 0
        self.histograms: list[int] = []

    @property
    def snapshot(self) -> Snapshot:
        return self.monitor.snapshot

    def step(self, number: int, grad_norm: float = 1.0) -> None:
        self.monitor.observe(StepSignals(number, 0.0, grad_norm=grad_norm))

    def observe_layers(self, state: LayerState | None, *, dropped: int) -> None:
        if state is not None:
            self.states.append(state)
        self.dropped += dropped

    def observe_histograms(self, found: RawHistograms, step: int) -> None:
        self.histograms.append(step)


class Run:
    """A watch with what is around it."""

    def __init__(self, interval: int = 1) -> None:
        self.watcher, self.passes = Watcher(), list[Pass]()
        self.model = nn.Linear(2, 2)
        config = ExporterConfig(layer_interval=interval)
        self.watch = LayerWatch(self.watcher, config, new_pass=self._new)  # type: ignore[arg-type]

    def _new(self, model: object) -> Pass:
        self.passes.append(Pass(model))
        return self.passes[-1]

    def step(self, number: int) -> None:
        self.watch.begin_step(number, self.model)
        self.watch.before_clipping()
        self.watch.after_step()
        self.watch.collect()

    @property
    def began(self) -> list[int]:
        return [step for each in self.passes for step, _ in each.began]


def test_the_first_step_and_then_at_intervals() -> None:
    """Of a run that is resumed, too."""
    run = Run(interval=10)
    for number in range(1001, 1031):
        run.step(number)

    assert run.began == [1001, 1011, 1021]


def test_a_training_that_begins_again() -> None:
    """Its first step is looked at, whatever the numbers were before."""
    run = Run(interval=10)
    for number in (1, 2, 3, 1, 2):
        run.step(number)

    assert run.began == [1, 1]


def test_no_interval() -> None:
    """0 looks at nothing, and neither does a loop without settings."""
    run = Run(interval=0)
    run.step(1)

    assert run.passes == []


def test_gradients_are_read_once_a_step() -> None:
    """A second clipping finds gradients that were clipped already."""
    run = Run()
    run.watch.begin_step(1, run.model)
    run.watch.before_clipping()
    run.watch.begin_step(1, run.model)
    run.watch.before_clipping()

    assert run.began == [1]


def test_another_model_gets_a_pass_of_its_own() -> None:
    """And so does the same one after `discard`."""
    run = Run(interval=10)
    run.step(1)
    run.model = nn.Linear(2, 2)
    run.step(2)
    run.watch.discard()
    run.step(3)

    assert [each.model for each in run.passes[1:]] == [run.model, run.model]
    assert run.began == [1, 2, 3]


def test_the_scale_of_a_gradient_scaler() -> None:
    """It goes along as it is, on its device."""
    run = Run()

    class Optimizer:
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)

    Optimizer.scaler.scale(torch.tensor(1.0))
    run.watch.begin_step(1, run.model, Optimizer())
    run.watch.before_clipping()

    assert run.passes[0].began[0][1] is Optimizer.scaler._scale


def test_why_there_are_no_layers(logs: pytest.LogCaptureFixture) -> None:
    """Said once, however many steps there are."""
    run = Run()
    run.model.requires_grad_(False)
    for number in (1, 2, 3):
        run.step(number)
    run.watch.discard()
    run.step(4)

    assert run.passes == []
    assert [record.getMessage() for record in logs.records] == [
        "no metrics of layers: no parameter is trained"
    ]


def test_the_first_non_finite_layer() -> None:
    """Where the backward pass, which comes from the head, met it; each pass counts its layers."""
    run = Run()
    for number, gradients in ((1, FINE), (2, (nan, inf, 1.0)), (3, (nan, nan, nan))):
        run.step(number)
        run.passes[0].find(number, gradients)
        run.watch.collect()
        run.watcher.step(number, sum(gradients))

    last = run.watcher.states[-1]
    assert last.first == ("L0.up", 2)
    assert last.non_finite == {"embed": 2, "L0.up": 2, "head": 1}
    assert run.watch.first_layer(2) == "L0.up"
    assert run.watch.first_layer(3) is None


def test_a_pass_that_arrives_with_the_question() -> None:
    """It was behind its step, of which the report is due now."""
    run = Run()
    run.step(1)
    run.watcher.step(1, nan)
    run.passes[0].find(1, (1.0, nan, 1.0))

    assert run.watch.first_layer(1) == "L0.up"
    assert not run.passes[0].waited


def test_gradients_that_recover() -> None:
    """As with fp16, whose scale is searched for: the last time counts, not that of long ago."""
    run = Run()
    for number, gradients in ((1, (1.0, 1.0, inf)), (2, FINE), (3, (inf, 1.0, 1.0))):
        run.step(number)
        run.passes[0].find(number, gradients)
        run.watch.collect()
        run.watcher.step(number, sum(gradients))

    assert [state.first for state in run.watcher.states] == [("head", 1), ("head", 1), ("embed", 3)]
    assert [run.watch.first_layer(step) for step in (1, 2, 3)] == ["head", None, "embed"]


def test_a_nan_between_two_passes() -> None:
    """By the next pass all weights have it, so where it began cannot be told and is not."""
    run = Run()
    run.step(1)
    run.passes[0].find(1)
    run.watch.collect()
    for number in range(1, 6):
        run.watcher.step(number, nan if number >= 4 else 1.0)
    run.step(6)
    run.passes[0].find(6, (nan, nan, nan))
    run.watch.collect()

    last = run.watcher.states[-1]
    assert last.first is None
    assert last.non_finite == {"embed": 1, "L0.up": 1, "head": 1}


def test_a_pass_that_arrives_before_the_step_before_it() -> None:
    """On a device that is behind: it is judged once that step is known."""
    run = Run()
    run.watcher.step(1)
    run.step(3)
    run.passes[0].find(3, (nan, 1.0, 1.0))
    run.watch.collect()
    early = list(run.watcher.states)
    run.watcher.step(2)
    run.watch.collect()

    assert early == []
    assert run.watcher.states[-1].first == ("embed", 3)


def test_at_the_end_nothing_stays_behind() -> None:
    """All is waited for, unless an error ended the training."""
    for error, waits in ((None, True), (RuntimeError(), False)):
        run = Run()
        run.step(1)
        run.passes[0].find(1)
        run.passes[0].dropped = 2
        run.watch.finish(error)

        assert run.passes[0].waited is waits
        assert len(run.watcher.states) == 1
        assert run.watcher.dropped == 2


def test_dropped_passes_are_counted() -> None:
    """Even when none arrives at all."""
    run = Run()
    for number in (1, 2):
        run.step(number)
        run.passes[0].dropped = number
        run.watch.collect()

    assert run.watcher.dropped == 2
    assert run.watcher.states == []


def test_a_step_that_turns_out_to_have_another_number() -> None:
    """A loop says the number only at the end of its step."""
    run = Run(interval=2)
    run.step(1)
    run.watch.renumber(1, 1001)
    run.passes[0].find(1)
    run.watch.collect()
    run.step(1002)
    run.step(1003)
    run.watch.renumber(1002, 7)  # of which nothing began

    assert run.watcher.states[0].norms.step == 1001
    assert run.began == [1, 1003]


def test_another_training_does_not_inherit_the_first_non_finite_layer() -> None:
    """The same callback may train twice."""
    run = Run()
    run.step(1)
    run.passes[-1].find(1, (1.0, nan, nan))
    run.watch.collect()
    assert run.watch.first_layer(1) is not None

    run.watch.discard()

    assert run.watch.first_layer(1) is None


def test_the_first_non_finite_layer_is_known_after_the_end() -> None:
    """The report on a NaN in the last steps is written last."""
    run = Run()
    run.step(1)
    run.passes[-1].find(1, (1.0, nan, nan))

    run.watch.finish(None)

    assert run.watch.first_layer(1) is not None


def test_sinks_that_ask_for_histograms_late() -> None:
    """As where the Trainer says that this is rank 0, and the launcher had said another."""
    run = Run(interval=0)
    run.watcher.histogram_interval = 2
    for number in (1, 2, 3):
        run.step(number)

    assert run.watcher.histograms == [1, 3]
