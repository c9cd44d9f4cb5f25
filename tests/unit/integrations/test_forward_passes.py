# SPDX-License-Identifier: Apache-2.0
"""What of a step is counted and timed as this rank's own."""

from __future__ import annotations

import copy
import io
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import nn

from training_exporter import TrainingExporter
from training_exporter.catalog import EVALUATING, FORWARD_BACKWARD, RUNNING
from training_exporter.integrations import step_phases
from training_exporter.integrations.forward_passes import ForwardPasses
from training_exporter.integrations.step_phases import StepPhases
from training_exporter.status import ForwardPasses as Counted
from training_exporter.timing.phases import HostMarks, PhaseClock


class Clock(HostMarks):
    """A host whose time passes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0
        self.mark = lambda: self.now

    def work(self, seconds: float) -> float:
        self.now += seconds
        return seconds


class Steps:
    """A training whose time passes when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = Clock()
        monkeypatch.setattr(step_phases, "open_phases", lambda _: PhaseClock(self.clock))
        self.exporter = TrainingExporter(serve=False)
        self.exporter.set_state(RUNNING)
        self.phases = StepPhases()
        self.phases.start(nn.Linear(1, 1))
        self.forward = ForwardPasses(self.exporter, self.phases)
        self.forward.start()

    def pass_through(self, forward: float = 1.0, backward: float = 2.0) -> None:
        """A micro-batch."""
        self.phases.begin_forward_backward()
        self.forward.around_loss(lambda _: self.clock.work(forward), object())
        self.clock.work(backward)
        self.phases.end_forward_backward()

    def end(self) -> None:
        self.phases.end_step(1)
        self.phases.hand_on(self.exporter)
        self.forward.step_ends()

    @property
    def counted(self) -> Counted:
        assert self.exporter.status.forward is not None
        return self.exporter.status.forward

    @property
    def compute(self) -> Mapping[str, float]:
        return self.exporter.status.compute


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    return Steps(monkeypatch)


def test_the_forward_pass_is_a_part_of_forward_and_backward(steps: Steps) -> None:
    """Its time is told apart, and missing nowhere."""
    steps.forward.data_arrived()
    steps.pass_through()
    steps.pass_through()
    steps.end()

    assert steps.counted == Counted(begun=2, ended=2, seconds=2.0)
    assert steps.compute[FORWARD_BACKWARD] == 6.0


def test_the_first_pass_of_a_step_begins_when_its_data_is_there(steps: Steps) -> None:
    """Whoever says so, and however often; the next pass begins when it does."""
    steps.forward.around_gather(lambda: None)
    steps.forward.data_arrived()
    before = steps.counted
    steps.pass_through()
    steps.forward.around_gather(lambda: None)

    assert before.begun == 1
    assert steps.counted.begun == steps.counted.ended == 1
    steps.pass_through()
    steps.end()
    steps.forward.data_arrived()
    assert (steps.counted.begun, steps.counted.ended) == (3, 2)


def test_a_gathering_in_an_evaluation_tells_nothing_of_data(steps: Steps) -> None:
    """The batches of the next step are not there yet."""
    steps.exporter.set_state(EVALUATING)
    steps.forward.around_gather(lambda: None)

    assert steps.counted.begun == 0


def test_what_a_collective_returns_is_returned(steps: Steps) -> None:
    """And what it raises is raised."""

    def fail(*_: object) -> None:
        raise ConnectionError

    assert steps.forward.around_gather(lambda *given, **named: (given, named), 1, a=2) == (
        (1,), {"a": 2},
    )  # fmt: skip
    with pytest.raises(ConnectionError):
        steps.forward.around_gather(fail)
    with pytest.raises(ConnectionError):
        steps.forward.around_loss(fail, object())


def test_an_error_of_ours_stays_ours(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is counted, and the loss is computed all the same."""

    def fail(**_: Any) -> None:
        raise RuntimeError

    monkeypatch.setattr(steps.exporter, "observe_forward", fail)

    assert steps.forward.around_gather(lambda: 7) == 7
    assert steps.forward.around_loss(lambda _: 8, object()) == 8
    assert steps.exporter.health.errors["step"] == 2


def test_buffers_that_come_from_another_rank_are_not_waited_for_by_oneself(
    steps: Steps, parallel: nn.Module
) -> None:
    """That part of a pass is no time of one's own; in an evaluation it is no time at all."""
    parallel._sync_buffers = lambda: steps.clock.work(10.0)  # type: ignore[assignment]
    batch = torch.ones(2, 2)
    steps.phases.begin_forward_backward()
    steps.forward.around_loss(lambda model: (steps.clock.work(1.0), model(batch)), parallel)
    steps.phases.end_forward_backward()
    parallel(batch)
    steps.end()

    assert steps.counted.seconds == 1.0
    assert steps.compute[FORWARD_BACKWARD] == 11.0


@pytest.mark.parametrize("fails", [False, True])
def test_a_model_under_ddp_has_nothing_of_ours_in_it_between_passes(
    steps: Steps, parallel: nn.Module, fails: bool
) -> None:
    """Who averages weights copies it, and who saves it whole pickles it."""

    def loss(model: nn.Module) -> torch.Tensor:
        value: torch.Tensor = model(torch.ones(2, 2)).sum()
        if fails:
            raise ArithmeticError
        return value

    with suppress(ArithmeticError):
        steps.forward.around_loss(loss, parallel)

    assert "_sync_buffers" not in vars(parallel)
    copy.deepcopy(parallel)
    torch.save(parallel, io.BytesIO())


def test_somebody_elses_own_method_comes_back(steps: Steps, parallel: nn.Module) -> None:
    """As it was."""
    own = lambda: None  # noqa: E731
    parallel._sync_buffers = own  # type: ignore[assignment]
    steps.forward.around_loss(lambda model: model(torch.ones(2, 2)), parallel)

    assert parallel._sync_buffers is own


@pytest.fixture
def parallel() -> Any:
    """A model with buffers under DDP, in a group of one process."""
    from torch import distributed

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield nn.parallel.DistributedDataParallel(nn.BatchNorm1d(2))
    distributed.destroy_process_group()
