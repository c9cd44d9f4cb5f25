# SPDX-License-Identifier: Apache-2.0
"""The first module whose output is not finite."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import nan
from typing import Any

import pytest
import torch
from torch import nn

from tests.sync_audit import SyncAudit
from tests.unit.device.late_device import LateDevice
from training_exporter.device import modules
from training_exporter.device.modules import FirstBadModule
from training_exporter.forensics.report import ModuleFinding


class Log(nn.Module):
    """Gives NaN for what is negative."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.log()


class Block(nn.Module):
    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.lin = nn.Linear(2, 2, bias=False)
        self.act = act
        nn.init.eye_(self.lin.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.act(self.lin(x))
        return out


class Wrapped(nn.Module):
    """Gives what it is told to make of its input."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: torch.Tensor) -> Any:
        return self.make(x)


@dataclass
class Output:
    loss: None
    logits: torch.Tensor


def broken() -> nn.Sequential:
    return nn.Sequential(Block(nn.Tanh()), Block(Log()), Block(nn.Tanh()))


X = torch.tensor([[-1.0, 1.0], [1.0, 1.0]])


def watch(model: nn.Module, *inputs: torch.Tensor, **options: Any) -> FirstBadModule:
    with FirstBadModule(model, step=7, **options) as watched:
        for one in inputs or (X,):
            model(one)
    return watched


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_the_culprit_is_named() -> None:
    """The innermost, not what is around it nor what comes after it, and what went in was fine."""
    watched = watch(broken())
    assert watched.arrived()
    assert watched.found() == ModuleFinding(7, "1.act", "Log", (2, 2), "float32", 1, 0, True)
    assert watched.gap is None


def test_a_finite_forward_pass_has_no_culprit() -> None:
    """Of any number of passes."""
    assert watch(broken(), X.abs(), X.abs()).found() is None


def test_the_second_pass_counts_too() -> None:
    """Micro-batches are passes of one step."""
    found = watch(broken(), X.abs(), X).found()
    assert found is not None
    assert found.name == "1.act"


def test_what_went_in_broken_acquits_the_module() -> None:
    """A NaN in the batch is none of the first layer's making."""
    found = watch(broken(), torch.full((1, 2), nan)).found()
    assert found is not None
    assert (found.name, found.inputs_finite) == ("0.lin", False)


def test_an_operation_between_modules_is_found_around_it() -> None:
    """The model itself has the empty name."""
    found = watch(Wrapped(lambda x: x / 0)).found()
    assert found is not None
    assert (found.name, found.kind, found.inf) == ("", "Wrapped", 4)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x.log(),
        lambda x: (None, x.log()),
        lambda x: [x, {"y": (x.log(),)}],
        lambda x: OrderedDict(loss=None, logits=x.log()),
        lambda x: Output(None, x.log()),
        lambda x: (torch.arange(3), x.log()),
    ],
)
def test_outputs_may_have_any_structure(make: Any) -> None:
    """Tuples, lists, mappings as ModelOutputs are, data classes; whole numbers are passed over."""
    found = watch(nn.Sequential(Wrapped(make))).found()
    assert found is not None
    assert (found.name, found.nan) == ("0", 1)


def test_a_late_device_is_not_waited_for() -> None:
    """All counts travel in one copy at the end, and name the same module."""
    device = LateDevice()
    watched = watch(broken(), open_backend=lambda _: device)
    assert device.behind == 1
    assert not watched.arrived()
    device.advance()

    assert watched.arrived()
    assert watched.found() == watch(broken()).found()
    assert device.waits == 0


def test_a_late_device_without_a_culprit() -> None:
    """And one whose inputs were broken before."""
    device = LateDevice()
    options = {"open_backend": lambda _: device}
    healthy, bad = watch(broken(), X.abs(), **options), watch(broken(), X * nan, **options)
    healthy.wait()
    bad.wait()
    assert healthy.found() is None
    found = bad.found()
    assert found is not None
    assert (found.name, found.inputs_finite) == ("0.lin", False)


def test_the_hooks_are_always_removed() -> None:
    """After the pass, and when it raises; the error goes its way, and the device is not asked."""
    model, device = broken(), LateDevice()
    with FirstBadModule(model, step=1):
        assert hooks(model) > 0
    assert hooks(model) == 0

    watched = FirstBadModule(model, step=1, open_backend=lambda _: device)
    model.append(nn.Linear(5, 1))
    with pytest.raises(RuntimeError, match="shapes"), watched:
        model(X)
    assert hooks(model) == 0
    assert device.behind == 0


def test_nothing_changes_in_the_pass() -> None:
    """Outputs and gradients are the same, bit by bit."""
    results = []
    for watching in (False, True):
        torch.manual_seed(1)
        model = nn.Sequential(Block(nn.Tanh()), nn.Dropout(0.5), Block(nn.Tanh()))
        if watching:
            with FirstBadModule(model, step=1):
                out = model(X)
        else:
            out = model(X)
        out.sum().backward()
        results.append([out, *[p.grad for p in model.parameters()]])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_an_error_of_ours_stays_at_the_boundary(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hooks run in the user's forward pass: it goes on, and they look no more."""
    errors: list[Exception] = []

    @contextmanager
    def boundary() -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            errors.append(error)

    def fail(_: object) -> None:
        raise ValueError("ours")

    monkeypatch.setattr(modules, "count_non_finite", fail)
    watched = watch(broken(), guard=boundary)
    assert len(errors) == 1
    assert watched.found() is None
    assert watched.gap is not None
    assert "given up after an error" in watched.gap.why


def test_the_number_of_calls_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that calls its modules without end does not fill the memory."""
    monkeypatch.setattr(modules, "MOST_CALLS", 5)
    device = LateDevice()
    watched = watch(broken(), X.abs(), X.abs(), open_backend=lambda _: device)
    device.advance()
    assert watched.found() is None
    assert watched.gap is not None


def test_no_operation_waits() -> None:
    """Also on the CPU nothing is done that another device would have to be waited for."""
    with SyncAudit() as audit:
        watch(broken())
    assert audit.syncs == []


def test_compiled_modules_are_left_out_and_said_to_be() -> None:
    """Hooks do not see into them; what is around them is still seen, and nothing is recompiled."""
    inner = broken()
    compiled = torch.compile(inner, backend="eager")
    watched = watch(nn.Sequential(nn.Identity(), compiled))
    found = watched.found()
    assert found is not None
    assert (found.name, found.kind) == ("", "Sequential")
    assert watched.gap is not None
    assert "1 compiled modules were not looked into" in watched.gap.why

    in_place = broken()
    in_place.compile(backend="eager")
    assert watch(in_place).gap is not None


@pytest.mark.skipif(not hasattr(torch.compiler, "set_stance"), reason="torch 2.6 and newer")
@pytest.mark.parametrize("in_place", [False, True])
def test_compiled_modules_can_be_run_uncompiled(in_place: bool) -> None:
    """Then the culprit is named as in the plain model; the compiled code is used again after."""
    compilations = []

    def backend(graph: Any, inputs: Any) -> Any:
        compilations.append(graph)
        return graph.forward

    model: Any = broken()
    if in_place:
        model.compile(backend=backend)
    else:
        model = torch.compile(model, backend=backend)
    model(X)
    before = len(compilations)
    watched = watch(model, force_eager=True)
    model(X)

    found = watched.found()
    assert found is not None
    assert found.name == "1.act"
    assert watched.gap is None
    assert len(compilations) == before > 0


def test_a_model_that_runs_compiled_beside_its_wrapper_is_said_to_be() -> None:
    """Its parts are not called, and the whole of it is no answer: older Trainers compile so."""
    torch._dynamo.reset()
    model = nn.Sequential(OrderedDict(block=Block(Log())))
    compiled = torch.compile(model, backend="eager")
    compiled(-torch.ones(1, 2))

    with FirstBadModule(model, step=1) as watched:
        compiled(-torch.ones(1, 2))

    assert watched.found() is None
    assert watched.gap is not None
    assert "compiled" in watched.gap.why
