# SPDX-License-Identifier: Apache-2.0
"""A training loop written by hand: what it says about its steps becomes StepSignals.

torch is imported only where a torch function is called, so that a loop of plain numbers needs none.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from math import isfinite
from numbers import Real
from operator import index
from typing import TYPE_CHECKING, Any, Protocol
from weakref import ref

from training_exporter import catalog
from training_exporter.config import ExporterConfig
from training_exporter.device.recorder import StepRecorder
from training_exporter.integrations.cuda_memory import MemoryObserver, MemoryWatcher
from training_exporter.integrations.layer_watch import LayerWatch, LayerWatcher
from training_exporter.integrations.nan_watch import NanWatch, NanWatcher
from training_exporter.integrations.optimizer import learning_rates
from training_exporter.integrations.optimizer import loss_scale as scale_of
from training_exporter.timing.step_timer import StepTimer

if TYPE_CHECKING:
    from torch import Tensor, nn

    Parameters = Tensor | Iterable[Tensor]


class LoopWatcher(NanWatcher, MemoryWatcher, LayerWatcher, Protocol):
    """What a loop needs of the exporter.

    Attributes:
        ended_step: the last step that ended, told by the loop.
    """

    ended_step: int


class TorchLoop:
    """Records the steps of a hand-written loop and hands them on as soon as they are on the host.

    Call `step` once per optimiser step, after it. Everything recorded since the previous call
    belongs to that step. On a GPU a step reaches the exporter one or more calls later. All methods
    belong to the training thread. What they raise is for the caller's error boundary; a step counts
    even when one of its values could not be recorded.

    Args:
        exporter: takes the finished steps.
        timer: knows how long the steps took; a pause or a wait is told to it, not to this.
        wall_clock: Unix seconds.
        recorder: turns values into signals.
        config: how to look at layers and into a NaN; None leaves that out.
    """

    def __init__(
        self,
        exporter: LoopWatcher,
        *,
        timer: StepTimer | None = None,
        wall_clock: Callable[[], float] = time.time,
        recorder: StepRecorder | None = None,
        config: ExporterConfig | None = None,
    ) -> None:
        self._exporter = exporter
        self._timer = timer or StepTimer()
        self._wall_clock = wall_clock
        self._recorder = recorder or StepRecorder()
        self._layers = LayerWatch(exporter, config)
        self._nans = NanWatch(exporter, config, first_layer=self._layers.first_layer)
        self._model: Callable[[], nn.Module | None] = lambda: None
        self._memory = MemoryObserver(exporter)
        self._step = 0
        self._clip_threshold: float | None = None
        self._norm_seen = False

    def step(
        self,
        *,
        loss: Tensor | float | None = None,
        grad_norm: Tensor | float | None = None,
        learning_rate: Any = None,
        tokens: Tensor | float | None = None,
        samples: Tensor | float | None = None,
        epoch: float | None = None,
        step: int | None = None,
        max_steps: int | None = None,
        loss_scale: Any = None,
        skipped: bool | None = None,
        data_wait_seconds: float | None = None,
        clip_threshold: float | None = None,
        positions: float | None = None,
        flops: float | None = None,
        inputs: Any = None,
    ) -> None:
        """Close an optimiser step. Whatever is not known is left out.

        Args:
            loss: loss of the step, added to that of its micro-batches.
            grad_norm: global L2 norm before clipping, unscaled. It goes before what
                `clip_grad_norm_` or `observe_gradients` saw.
            learning_rate: a rate, rates by group, an optimiser or a scheduler. The last two are
                read now: call this before the scheduler moves on.
            tokens: tokens of the step, added to those of its micro-batches.
            samples: rows of data of the step, added to those of its micro-batches.
            epoch: position in the data, in epochs.
            step: number of the step; one more than the last when not given, from 1 on.
            max_steps: step at which the run is planned to end.
            loss_scale: the scale, or the gradient scaler itself, which is read without waiting.
            skipped: True when the optimiser left the weights alone.
            data_wait_seconds: time this step waited for data; goes before what the timer knows.
            clip_threshold: norm above which gradients are clipped; goes before that of
                `clip_grad_norm_`.
            positions: token positions of the step with their padding, of all micro-batches; where
                `tokens` are those that are no padding.
            inputs: what went into the model, for a report on a NaN: tensors in any usual container,
                of which references are kept for some steps.
            flops: floating-point operations that the model needed for the step on this process, of
                all micro-batches: about 6 x parameters x positions when a whole model is trained.

        Raises:
            TypeError: a value is neither a number nor, where one is allowed, a tensor.
            ValueError: a tensor has more than one element.
            In both cases the step is handed on with what was recorded until then.
        """
        self._step = self._exporter.ended_step + 1
        fields: dict[str, Any] = {}
        try:
            fields.update(self._timed(data_wait_seconds))
            if step is not None:
                assumed, self._step = self._step, index(step)
                self._layers.renumber(assumed, self._step)
            _on_host(data_wait_seconds)
            fields["clip_threshold"] = _on_host(clip_threshold, self._clip_threshold)
            _add_on_host(
                fields, epoch=epoch, max_steps=max_steps, skipped=skipped, positions=positions,
                flops=flops,
            )  # fmt: skip
            self.add_micro_batch(loss=loss, tokens=tokens, samples=samples, inputs=inputs)
            self._record(grad_norm, loss_scale, learning_rate)
        finally:
            self._close(fields)

    def add_micro_batch(
        self,
        *,
        loss: Tensor | float | None = None,
        tokens: Tensor | float | None = None,
        samples: Tensor | float | None = None,
        inputs: Any = None,
    ) -> None:
        """Add a micro-batch to the step that `step` will close (gradient accumulation).

        The loss is summed: give it the way it went into `backward`, divided by the number of
        micro-batches if that is what the loop does. With `inputs`, the tensors that went into the
        model, a report on a NaN tells whether they were finite. Called after `backward` and before
        clipping it tells most; see docs/forensics.md.
        """
        self._recorder.add_loss(loss)
        self._recorder.add_tokens(tokens)
        self._recorder.add_samples(samples)
        if inputs is not None:
            self._nans.keep(inputs)
        self._nans.add_loss(loss)

    def watch_model(self, model: nn.Module) -> None:
        """The model whose layers are looked at before clipping, and whose weights in a report on a
        NaN. It is not kept alive."""
        self._model = ref(model)
        self._nans.watch_model(model)

    def clip_grad_norm_(
        self,
        parameters: Parameters,
        max_norm: float,
        norm_type: float = 2.0,
        error_if_nonfinite: bool = False,
        foreach: bool | None = None,
    ) -> Tensor:
        """`torch.nn.utils.clip_grad_norm_`, whose total norm and threshold are recorded.

        Raises only what torch raises, since the training goes on with what it returns: a failure to
        record stops at the exporter's boundary right here. With another norm than the L2 norm
        nothing is recorded. Under mixed precision, unscale the gradients first, as for torch's own
        function.
        """
        from torch.nn.utils import clip_grad_norm_

        self._nans.before_clipping()
        with self._exporter.boundary.at(catalog.STEP_ERROR):
            self._look_at_layers()
        total = clip_grad_norm_(parameters, max_norm, norm_type, error_if_nonfinite, foreach)
        with self._exporter.boundary.at(catalog.STEP_ERROR):
            self._clipped(total, max_norm, norm_type)
        return total

    def observe_gradients(self, model_or_parameters: nn.Module | Parameters) -> None:
        """Record the global norm of the gradients. To be called before they are clipped.

        The first norm of a step counts, so it does no harm next to `clip_grad_norm_`.

        Args:
            model_or_parameters: a model, a parameter or parameters; an iterator is used up.
        """
        if self._norm_seen:
            return
        from training_exporter.device.gradients import global_norm

        given: Any = model_or_parameters
        if hasattr(given, "named_parameters"):
            self._nans.watch_model(given)
        self._nans.before_clipping()
        with self._exporter.boundary.at(catalog.STEP_ERROR):
            self._look_at_layers()
        norm = global_norm(given.parameters() if hasattr(given, "parameters") else given)
        self._see_norm(norm, clipped=False)

    def discard(self) -> None:
        """Forget what was recorded since the last `step`, for a step that is given up."""
        self._recorder.discard()
        self._nans.discard()
        self._layers.discard()
        self._start_afresh()

    def finish(self, error: BaseException | None = None) -> None:
        """Hand on the outstanding steps, at the end of training, and what the memory was like.

        Args:
            error: what ended it. After one the device may hang, and who waits for it would keep
                the process from ending; so only the steps that have arrived are handed on.
        """
        with self._exporter.boundary.at(catalog.LIFECYCLE_ERROR):
            self._memory.finish(error)
        with self._exporter.boundary.at(catalog.LIFECYCLE_ERROR):
            self._nans.finish(self._recorder, error)
        with self._exporter.boundary.at(catalog.LIFECYCLE_ERROR):
            self._layers.finish(error)  # last, as a report asks for the first layer

    def _timed(self, waited: float | None) -> dict[str, Any]:
        given = waited if isinstance(waited, Real) else None  # the lap ends whatever was given
        step_seconds, data_wait_seconds = self._timer.lap(given)
        return {
            "step_seconds": step_seconds,
            "data_wait_seconds": data_wait_seconds,
            "memory_allocated_bytes": self._memory.observe(),
        }

    def _record(self, grad_norm: Any, loss_scale: Any, learning_rate: Any) -> None:
        self._recorder.set_grad_norm(grad_norm)
        self._recorder.set_loss_scale(scale_of(loss_scale))
        for group, rate in learning_rates(learning_rate):
            self._recorder.set_learning_rate(group, rate)

    def _look_at_layers(self) -> None:
        self._layers.begin_step(self._exporter.ended_step + 1, self._model())
        self._layers.before_clipping()

    def _clipped(self, total: Tensor, max_norm: float, norm_type: float) -> None:
        if float(norm_type) != 2.0:
            return
        if isinstance(max_norm, float | int) and isfinite(max_norm):  # inf: for the norm alone
            self._clip_threshold = float(max_norm)
        if not self._norm_seen:
            self._see_norm(total, clipped=True)

    def _see_norm(self, norm: Tensor | None, *, clipped: bool) -> None:
        self._recorder.set_grad_norm(norm)
        self._norm_seen = norm is not None
        self._nans.before_update(norm, clipped=clipped)

    def _close(self, fields: dict[str, Any]) -> None:
        self._start_afresh()
        self._exporter.ended_step = self._step
        self._recorder.finish(step=self._step, timestamp=self._wall_clock(), **fields)
        with self._exporter.boundary.at(catalog.STEP_ERROR):
            self._layers.after_step()
            self._layers.collect()
        self._nans.close_step(self._step)
        self._nans.hand_on(self._recorder)

    def _start_afresh(self) -> None:
        self._clip_threshold, self._norm_seen = None, False


def _add_on_host(fields: dict[str, Any], **given: float | None) -> None:
    for name, value in given.items():  # one by one, so that those before a wrong one are there
        fields[name] = _on_host(value)


def _on_host(value: float | None, otherwise: float | None = None) -> float | None:
    """A value that has no way through the device rows and must be a number already."""
    if value is None:
        return otherwise
    if not isinstance(value, Real):
        raise TypeError(f"expected a number, got {type(value).__name__}")
    return value
