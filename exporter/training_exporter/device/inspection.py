# SPDX-License-Identifier: Apache-2.0
"""What was non-finite in a step: its inputs, the parameters, and the gradients where there are any.

All of it is work for a step that is broken already. Nobody waits for the device: an investigation
is begun, and asked in later steps whether its counts have arrived.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import torch

from training_exporter.device import rows
from training_exporter.device.counting import CountJob
from training_exporter.device.distributed import whole
from training_exporter.device.kept_inputs import KeptInputs, KeptStep
from training_exporter.device.labels import LabelJob
from training_exporter.device.parcel import OpenBackend, open_backend
from training_exporter.forensics import report
from training_exporter.forensics.report import Findings, Gap

Named = Iterable[tuple[str, torch.Tensor]]
_Job = TypeVar("_Job")

_NO_MODEL: Final = "the model was not told to the exporter"
_CAPTURED: Final = "a CUDA graph was being captured, in which nothing is computed"


class _BeforeUpdate(NamedTuple):
    step: int
    gradients: CountJob | None
    parameters: CountJob
    closed: bool = False


class Investigation:
    """Counts that are on their way to the host.

    Attributes:
        step: the optimiser step that is investigated.
    """

    def __init__(self, step: int) -> None:
        self.step = step
        self._looked_at = step
        self._before_update = False
        self._inputs: CountJob | None = None
        self._labels: LabelJob | None = None
        self._parameters: CountJob | None = None
        self._gradients: CountJob | None = None
        self._indices: tuple[int, ...] | None = None
        self._gaps: list[Gap] = []

    def arrived(self) -> bool:
        """Whether all is on the host. Never waits."""
        return all(job.arrived() for job in self._jobs())

    def wait(self) -> None:
        """Wait until it is: for the end of training only, and not after an error of the device."""
        for job in self._jobs():
            job.wait()

    def findings(self) -> Findings:
        """What was found. Valid only once all has arrived."""
        at = self._looked_at
        inputs, gradients, parameters = self._inputs, self._gradients, self._parameters
        return Findings(
            None if inputs is None else inputs.inspection(self.step, before_update=True),
            () if self._labels is None else self._labels.labels(),
            None
            if parameters is None
            else parameters.inspection(at, before_update=self._before_update),
            None if gradients is None else gradients.inspection(self.step, before_update=True),
            self._indices,
            tuple(self._gaps),
        )

    def _jobs(self) -> list[CountJob | LabelJob]:
        jobs = (self._inputs, self._labels, self._parameters, self._gradients)
        return [job for job in jobs if job is not None]


def broken_on_host(value: Any) -> bool:
    """Whether a number, or a tensor in host memory, is NaN or infinite.

    False for what would have to be waited for.
    """
    if type(value) is torch.Tensor and value.is_cpu and not value.dim():
        value = value.tolist()  # all there is on a CPU, at a tenth of the way round
    elif isinstance(value, torch.Tensor):
        if not value.is_cpu or value.numel() != 1:
            return False
        local = value if type(value) is torch.Tensor else whole(value)
        if local is None:  # a shard, of which the others hold the rest
            return False
        value = rows.read(local.reshape(()))
    return isinstance(value, float) and value - value != 0.0


class Inspector:
    """Keeps what may be looked at later, and looks when a step turns out to be non-finite.

    On a healthy step only `keep` and `close_step` are called, which hold references. For the
    training thread.

    Args:
        kept: the inputs of the last steps.
        open_backend: how to send from a device.
    """

    def __init__(
        self, *, kept: KeptInputs | None = None, open_backend: OpenBackend = open_backend
    ) -> None:
        self.kept = kept or KeptInputs()
        self._open_backend = open_backend
        self._before_update: _BeforeUpdate | None = None

    broken_on_host = staticmethod(broken_on_host)

    def keep(self, inputs: Any, indices: Sequence[int] | None = None) -> None:
        """Keep the inputs of a micro-batch, and which rows they are; see KeptInputs."""
        self.kept.keep(inputs, indices)

    def close_step(self, step: int) -> None:
        """What was kept and looked at since the last call were those of `step`."""
        self.kept.close_step(step)
        seen = self._before_update
        if seen is not None and not seen.closed:  # its number may have been a guess
            self._before_update = seen._replace(step=step, closed=True)

    def discard(self) -> None:
        """Forget the step that is not closed."""
        self.kept.discard()
        if self._before_update is not None and not self._before_update.closed:
            self._before_update = None

    def look_before_update(
        self, step: int, model: torch.nn.Module, *, clipped: bool = False
    ) -> None:
        """Count what is non-finite in gradients and weights of a step that is known to be broken.

        To be called after the last backward pass and before clipping, which spreads a NaN to all
        layers, and the update, which carries it into the weights. So it is for where the loss is
        known at once, on the CPU: see `broken_on_host`.

        Args:
            step: the step of the gradients.
            model: whose they are.
            clipped: the gradients have been clipped already, so that only the weights tell.

        Raises:
            TypeError, RuntimeError: as CountJob.
        """
        grads = ((name, p.grad) for name, p in model.named_parameters() if p.grad is not None)
        counted = None if clipped else self._count(grads)
        self._before_update = _BeforeUpdate(step, counted, self._count(_state_of(model)))

    def begin(
        self,
        step: int,
        model: torch.nn.Module | None,
        *,
        now: int,
        classes: int | None = None,
    ) -> Investigation:
        """Begin to look for what was non-finite in a step.

        Args:
            step: the step of the event.
            model: its parameters and buffers are looked at as they are now, if they were not
                before the update of `step`. None when nobody told it.
            now: the last step that was closed; later than `step` when its values came late.
            classes: how many classes the labels may name, where known.
        """
        begun = Investigation(step)
        gaps = begun._gaps
        if model is not None and self.capturing(model):
            gaps += [Gap(what, _CAPTURED) for what in (report.INPUTS, report.PARAMETERS)]
            return begun
        self._begin_inputs(begun, late=now - step, classes=classes)
        seen, self._before_update = self._before_update, None
        if seen is not None and seen.step == step:
            begun._gradients, begun._parameters = seen.gradients, seen.parameters
            begun._before_update = True
            if seen.gradients is None:
                gaps.append(Gap(report.GRADIENTS, _why_no_gradients(now - step)))
            return begun
        begun._looked_at = now
        if model is None:
            gaps += [Gap(what, _NO_MODEL) for what in (report.PARAMETERS, report.GRADIENTS)]
            return begun
        begun._parameters = _tried(gaps, report.PARAMETERS, lambda: self._count(_state_of(model)))
        gaps.append(Gap(report.GRADIENTS, _why_no_gradients(now - step)))
        return begun

    def _begin_inputs(self, begun: Investigation, *, late: int, classes: int | None) -> None:
        kept, gaps = self.kept.of(begun.step), begun._gaps
        if kept is None:
            gaps.append(Gap(report.INPUTS, _why_no_inputs(late)))
            return
        begun._indices = None if kept.indices is None else tuple(kept.indices)
        named = kept.named(unchanged=late > 0)
        missing = kept.missing or _overwritten(len(kept.tensors) - len(named), kept)
        if missing is not None:
            gaps.append(Gap(report.INPUTS, missing))
        if named:
            begun._inputs = _tried(gaps, report.INPUTS, lambda: self._count(named))
            begun._labels = _tried(
                gaps, report.LABELS, lambda: LabelJob(named, classes, self._open_backend)
            )

    def _count(self, named: Named) -> CountJob:
        return CountJob(named, open_backend=self._open_backend)

    def capturing(self, model: torch.nn.Module) -> bool:
        """Whether the model's device is recording a CUDA graph."""
        first = next(model.parameters(), None)
        if first is None:
            return False
        try:
            backend = self._open_backend(first.device)
        except TypeError:  # will be said of each check
            return False
        return backend is not None and backend.capturing()


def _tried(gaps: list[Gap], what: str, begin: Callable[[], _Job]) -> _Job | None:
    """What `begin` makes, or None and a gap: one check that fails must not cost the others."""
    try:
        return begin()
    except (TypeError, RuntimeError) as error:  # no memory left, or a type without isnan
        first_line = str(error).partition("\n")[0]
        gaps.append(Gap(what, f"looking at them failed: {first_line or type(error).__name__}"))
        return None


def _state_of(model: torch.nn.Module) -> Named:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _late(steps: int) -> str:
    return f"{steps} step{'' if steps == 1 else 's'} later"


def _why_no_inputs(late: int) -> str:
    if late > 0:
        return f"the batch was gone when the NaN became known, {_late(late)}"
    return "the batch was not told to the exporter"


def _why_no_gradients(late: int) -> str:
    if late > 0:
        gone = f"they were gone when the NaN became known, {_late(late)}"
    else:
        gone = "clipping or the update had changed them when the NaN became known"
    return f"{gone}; with a layer interval of 1 the first layer is known"


def _overwritten(number: int, kept: KeptStep) -> str | None:
    if not number:
        return None
    return f"{number} of {len(kept.tensors)} tensors were written into since"
