# SPDX-License-Identifier: Apache-2.0
"""When gradients are looked at value by value, and for which step."""

from __future__ import annotations

from collections import deque

import pytest
import torch
from torch import nn

from training_exporter.integrations.survey_watch import SurveyWatch


class Survey:
    """Numbers its looks. They arrive when the test says so; at `full` there is no room."""

    def __init__(self) -> None:
        self.dropped = 0
        self.full = False
        self.raising: Exception | None = None
        self.looks = 0
        self._there: deque[int] = deque()
        self.ready: list[int] = []

    def before_clipping(self, loss_scale: object = None) -> None:
        if self.raising is not None:
            raise self.raising
        if self.full:
            self.dropped += 1
            return
        self.looks += 1
        self._there.append(self.looks)

    def arrive(self) -> None:
        self.ready.append(self._there.popleft())

    def collect(self, *, wait: bool = False) -> list[int]:
        ready, self.ready = self.ready, []
        return ready


class Run:
    """A watch, and what it handed on."""

    def __init__(self, interval: int = 1) -> None:
        self.interval = interval
        self.survey = Survey()
        self.found: list[tuple[int, int]] = []
        self.raising: Exception | None = None
        self.dropped = 0
        self.model = nn.Linear(2, 1)
        self.watch: SurveyWatch[int] = SurveyWatch(
            lambda: self.interval, self._new, self._take, self._count
        )

    def _new(self, model: object) -> Survey:
        return self.survey

    def _take(self, look: int, step: int) -> None:
        if self.raising is not None:
            raise self.raising
        self.found.append((look, step))

    def _count(self, dropped: int) -> None:
        self.dropped += dropped

    def step(self, number: int) -> None:
        self.watch.begin_step(number, self.model)
        self.watch.before_clipping()


def test_once_a_step() -> None:
    """A second clipping finds gradients that were clipped already."""
    run = Run()
    for number in (1, 1, 2):
        run.step(number)
        run.watch.before_clipping()

    assert run.survey.looks == 2


def test_the_first_step_and_then_at_intervals() -> None:
    """Of a run that is resumed, too."""
    run = Run(interval=5)
    for number in range(101, 112):
        run.step(number)
        if run.survey.looks > len(run.found):
            run.survey.arrive()
        run.watch.collect()

    assert run.found == [(1, 101), (2, 106), (3, 111)]


def test_looks_arrive_with_the_steps_that_they_were_of() -> None:
    """Some steps late, and though one between them was dropped."""
    run = Run()
    run.step(1)
    run.survey.full = True
    run.step(2)
    run.survey.full = False
    run.step(3)
    run.survey.arrive()
    run.survey.arrive()
    run.watch.collect()

    assert run.found == [(1, 1), (2, 3)]
    assert run.dropped == 1


def test_who_takes_them_raises() -> None:
    """What arrived with it is lost, and the next look has its own step all the same."""
    run = Run()
    run.step(1)
    run.step(2)
    run.survey.arrive()
    run.survey.arrive()
    run.raising = RuntimeError("can't start new thread")
    with pytest.raises(RuntimeError):
        run.watch.collect()

    run.raising = None
    run.step(3)
    run.survey.arrive()
    run.watch.collect()
    assert run.found == [(3, 3)]


def test_a_look_that_raises() -> None:
    """There is none of that step, and the next one has its own step."""
    run = Run()
    run.survey.raising = RuntimeError("out of memory")
    with pytest.raises(RuntimeError):
        run.step(1)
    run.survey.raising = None
    run.step(2)
    run.survey.arrive()
    run.watch.collect()

    assert run.found == [(1, 2)]


def test_a_step_that_is_given_another_number() -> None:
    """As by a loop that says it only afterwards."""
    run = Run(interval=10)
    run.step(1)
    run.watch.renumber(1, 5001)
    run.survey.arrive()
    run.watch.collect()
    run.step(5010)
    run.step(5011)

    assert run.found == [(1, 5001)]
    assert run.survey.looks == 2


def test_nobody_asks() -> None:
    """Then nothing is looked at, until another training begins and somebody does."""
    run = Run(interval=0)
    run.step(1)
    assert run.survey.looks == 0

    run.interval = 1
    run.model = nn.Linear(2, 2)
    run.step(2)
    assert run.survey.looks == 1


def test_nothing_is_trained() -> None:
    """That is no error, and no look."""
    run = Run()
    run.model.requires_grad_(False)
    run.step(1)
    run.watch.collect()

    assert run.survey.looks == 0
    assert torch.is_grad_enabled()
