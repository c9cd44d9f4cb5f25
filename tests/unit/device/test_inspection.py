# SPDX-License-Identifier: Apache-2.0
"""Looking for what was non-finite in a step that is broken."""

from __future__ import annotations

from math import inf, nan
from typing import Any

import pytest
import torch
from torch import nn

from tests.sync_audit import SyncAudit
from tests.unit.device.late_device import LateDevice
from training_exporter.device import inspection
from training_exporter.device.inspection import Inspector, broken_on_host
from training_exporter.device.kept_inputs import KeptInputs
from training_exporter.device.labels import IGNORED, MOST_LABELS, LabelJob
from training_exporter.forensics.report import Labels


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def weight(of: nn.Module) -> torch.Tensor:
    return of.get_parameter("2.weight").detach()


def why(found: Any) -> dict[str, str]:
    return {gap.what: gap.why for gap in found.gaps}


def labels(values: Any, *, dtype: torch.dtype = torch.int64, classes: int | None = None) -> Any:
    job = LabelJob([("labels", torch.tensor(values, dtype=dtype))], classes)
    assert job.arrived()
    (only,) = job.labels()
    return only


def test_all_is_known_at_once_on_the_cpu() -> None:
    """Inputs, weights, buffers and gradients, each with name and counts."""
    inspector, net = Inspector(), model()
    inspector.keep({"x": torch.tensor([[nan, 1.0, inf]]), "labels": torch.tensor([1])}, [42])
    weight(net)[0] = nan
    net.get_buffer("1.running_var")[1] = inf
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    net.get_parameter("0.bias").grad = torch.full((4,), nan)
    inspector.look_before_update(7, net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(nan)  # the update carries it into all of them
    inspector.close_step(7)
    begun = inspector.begin(7, net, now=7, classes=2)

    assert begun.arrived()
    found = begun.findings()
    assert found.gaps == ()
    assert found.inputs is not None
    assert [(one.name, one.nan, one.inf) for one in found.inputs.worst] == [("x", 1, 1)]
    assert found.labels == (Labels("labels", 1, 0, 1, 1, 2),)
    assert found.parameters is not None
    assert [(one.name, one.nan, one.inf) for one in found.parameters.worst] == [
        ("2.weight", 4, 0),
        ("1.running_var", 0, 1),
    ]
    assert (found.parameters.checked, found.parameters.before_update) == (9, True)
    assert found.gradients is not None
    assert [(one.name, one.nan) for one in found.gradients.worst] == [("0.bias", 4)]
    assert found.gradients.checked == 6
    assert found.batch_indices == (42,)


def test_a_healthy_look_finds_nothing() -> None:
    """And does not say what it does not know."""
    inspector, net = Inspector(), model()
    inspector.keep(torch.ones(1, 3))
    inspector.close_step(1)
    found = inspector.begin(1, net, now=1).findings()
    assert found.inputs is not None
    assert found.parameters is not None
    assert (found.inputs.bad, found.parameters.bad) == (0, 0)
    assert found.labels == ()
    assert found.batch_indices is None
    assert set(why(found)) == {"gradients"}


def test_a_late_device_is_not_waited_for() -> None:
    """The NaN of step 1 is known at step 4; the counts come later still."""
    device, net = LateDevice(), model()
    inspector = Inspector(open_backend=lambda _: device)
    inspector.keep({"x": torch.tensor([nan]), "labels": torch.tensor([IGNORED])})
    for step in range(1, 5):
        inspector.close_step(step)
        inspector.kept._open.micro_batches = 1  # as on a device: nothing is let go of
    weight(net)[0] = nan
    begun = inspector.begin(1, net, now=4)
    assert not begun.arrived()
    weight(net)[0] = 0.0
    while device.behind:
        assert not begun.arrived()
        device.advance()

    assert begun.arrived()
    found = begun.findings()
    assert found.inputs is not None
    assert (found.inputs.step, found.inputs.bad) == (1, 1)
    assert found.labels == (Labels("labels", 1, 1),)
    assert found.parameters is not None
    assert (found.parameters.step, found.parameters.bad) == (4, 1)
    assert why(found) == {
        "gradients": "they were gone when the NaN became known, 3 steps later; "
        "with a layer interval of 1 the first layer is known"
    }
    assert device.waits == 0


def test_the_end_of_training_may_wait() -> None:
    """A NaN in the last step gets its report too."""
    device = LateDevice()
    inspector = Inspector(open_backend=lambda _: device)
    begun = inspector.begin(1, model(), now=1)
    begun.wait()
    assert begun.arrived()
    assert device.waits == 1


def test_it_says_why_the_batch_is_not_known() -> None:
    """Gone, never told, too large, or written into."""
    net, buffer = model(), torch.ones(3)
    inspector = Inspector()
    inspector.keep(buffer)
    inspector.close_step(5)
    assert (
        "was gone when the NaN became known, 3 steps later"
        in why(inspector.begin(2, net, now=5).findings())["inputs"]
    )
    assert why(inspector.begin(6, net, now=6).findings())["inputs"] == (
        "the batch was not told to the exporter"
    )
    buffer.fill_(nan)
    late = inspector.begin(5, net, now=6).findings()
    assert late.inputs is None
    assert why(late)["inputs"] == "1 of 1 tensors were written into since"


def test_what_is_written_into_within_the_step_is_still_its_batch() -> None:
    """A model may mask its labels in place; no other batch can be there yet."""
    inspector, values = Inspector(), torch.ones(3)
    inspector.keep(values)
    inspector.close_step(5)
    values[0] = nan
    found = inspector.begin(5, model(), now=5).findings()
    assert found.inputs is not None
    assert found.inputs.bad == 1


def test_gradients_of_another_step_are_not_taken() -> None:
    """Those of step 7 say nothing of step 8."""
    inspector, net = Inspector(), model()
    net.get_parameter("0.bias").grad = torch.full((4,), nan)
    inspector.look_before_update(7, net)
    found = inspector.begin(8, net, now=8).findings()
    assert found.gradients is None
    assert why(found)["gradients"].startswith("clipping or the update had changed them")


def test_nothing_is_begun_while_a_graph_is_captured() -> None:
    """The counts would become a part of the graph."""
    device = LateDevice()
    device.graph = True
    found = Inspector(open_backend=lambda _: device).begin(1, model(), now=1).findings()
    assert found.parameters is None
    assert "a CUDA graph was being captured" in why(found)["parameters"]
    assert device.behind == 0


def test_a_check_that_fails_does_not_cost_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device has no memory left for the labels; the report says so, and has the rest."""

    def out_of_memory(*_: object) -> LabelJob:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")

    monkeypatch.setattr(inspection, "LabelJob", out_of_memory)
    inspector = Inspector()
    inspector.keep(torch.ones(3))
    inspector.close_step(1)
    found = inspector.begin(1, model(), now=1).findings()
    assert why(found)["labels"] == "looking at them failed: CUDA out of memory."
    assert found.inputs is not None
    assert found.parameters is not None


def test_a_device_that_cannot_be_read_is_said_to_be() -> None:
    """As a gap, with the reason, and not as an error."""
    net = nn.Linear(2, 2)

    def refuse(device: torch.device) -> None:
        raise TypeError("tensors on 'xla' cannot be read without waiting")

    found = Inspector(open_backend=refuse).begin(1, net, now=1).findings()
    assert found.parameters is None
    assert "cannot be read without waiting" in why(found)["parameters"]


def test_a_model_without_parameters_is_no_trouble() -> None:
    """Nothing is checked, nothing is bad."""
    found = Inspector().begin(1, nn.Identity(), now=1).findings()
    assert found.parameters is not None
    assert found.parameters.checked == 0


def test_healthy_steps_wait_for_nothing() -> None:
    """They dispatch no operation at all."""
    inspector = Inspector(kept=KeptInputs(most_steps=2))
    inputs = {"x": torch.ones(3), "labels": torch.ones(3, dtype=torch.int64)}

    class Refuse(SyncAudit):
        def __torch_dispatch__(self, func: Any, *args: Any, **kwargs: Any) -> Any:
            raise AssertionError(f"{func} on a healthy step")

    with Refuse():
        for step in range(1, 9):
            inspector.keep(inputs, [1])
            inspector.close_step(step)


def test_labels_are_counted_and_bounded() -> None:
    """What is -100 is left out of the least and the greatest."""
    assert labels([IGNORED, 3, 7, IGNORED]) == Labels("labels", 4, 2, 3, 7)
    assert labels([-1, 5], classes=5) == Labels("labels", 2, 0, -1, 5, 5)
    assert labels([IGNORED] * 3) == Labels("labels", 3, 3)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32])
def test_labels_of_any_whole_type_are_read(dtype: torch.dtype) -> None:
    """Also of one that cannot hold -100: 156 is what it would wrap around to."""
    top = 156 if dtype is torch.uint8 else 100
    assert labels([2, top], dtype=dtype) == Labels("labels", 2, 0, 2, top)


def test_only_labels_are_looked_at() -> None:
    """By name and type: regression targets and masks are none, and there is a bound."""
    ids = torch.tensor([1])
    named = [
        ("input_ids", ids),
        ("labels", torch.tensor([0.5])),
        ("label", torch.tensor([True])),
        ("targets", torch.empty(0, dtype=torch.int64)),
        ("micro-batch 2, labels", ids),
        ("decoder.target", ids),
    ]
    assert [one.name for one in LabelJob(named, None).labels()] == [
        "micro-batch 2, labels",
        "decoder.target",
    ]
    assert len(LabelJob([("labels", ids)] * 100, None).labels()) == MOST_LABELS


@pytest.mark.parametrize("value", [nan, inf, torch.tensor(nan), torch.tensor([-inf])])
def test_a_broken_loss_in_host_memory_is_known(value: object) -> None:
    """A number or a tensor of one element."""
    assert broken_on_host(value)


@pytest.mark.parametrize(
    "value", [1.0, 3, None, torch.tensor(1.0), torch.ones(2), torch.empty((), device="meta")]
)
def test_anything_else_is_not_known_to_be_broken(value: object) -> None:
    """Least of all what would have to be waited for."""
    assert not broken_on_host(value)
