# SPDX-License-Identifier: Apache-2.0
"""The gradient norm of a Trainer's steps, and what has to look at gradients before the clipping."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from training_exporter import catalog
from training_exporter.boundary import StepBoundary
from training_exporter.device.gradients import global_norm
from training_exporter.integrations.layer_watch import LayerWatch
from training_exporter.integrations.nan_watch import NanWatch
from training_exporter.integrations.optimizer import loss_scale, unscaled
from training_exporter.integrations.step_work import StepWork


class GradientNorm:
    """Gets around whatever of a Trainer's methods knows the norm, and computes it where none does.

    Args:
        record: takes the norm of a step, before clipping and without a loss scale.
        layers, nans: look at gradients that are not clipped.
        work: is told that this is our own part of the time.
        boundary: where errors stop.
    """

    def __init__(
        self,
        record: Callable[[Any], object],
        layers: LayerWatch,
        nans: NanWatch,
        work: StepWork,
        boundary: StepBoundary,
    ) -> None:
        self._record = record
        self._layers = layers
        self._nans = nans
        self._work = work
        self._boundary = boundary
        self._norm: Any = None
        self._inside = False

    def begin_step(self) -> None:
        """An optimiser step begins, whose norm is not known."""
        self._norm = None

    @property
    def is_known(self) -> bool:
        """Whether the norm of the step has been seen."""
        return self._norm is not None

    def around(self, grad_norm: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Ask for the norm, which may clip. Raises only what that does."""
        if self._inside:  # the methods that know the norm call each other
            norm = grad_norm(*args, **kwargs)
            self._see(norm, outermost=False)
            return norm
        self._nans.before_clipping()
        part = self._work.own_part_of_optimizer(on_device=self._layers.due)
        with part, self._boundary.at(catalog.STEP_ERROR):
            self._layers.before_clipping()
        self._inside = True
        try:
            norm = grad_norm(*args, **kwargs)
        finally:
            self._inside = False
        self._see(norm, outermost=True)
        return norm

    def before_update(self, model: Any, optimizer: object) -> None:
        """Compute the norm, if none was seen: nothing clips, so the gradients are still what they
        were. What it raises is for the caller's error boundary."""
        if self.is_known:
            return
        norm = global_norm(model.parameters())
        self._nans.before_update(norm, clipped=False)
        self._record(unscaled(norm, loss_scale(getattr(optimizer, "scaler", None))))
        self._layers.before_clipping()

    def _see(self, norm: Any, *, outermost: bool) -> None:
        part = self._work.own_part_of_optimizer(on_device=False)
        with part, self._boundary.at(catalog.STEP_ERROR):
            if norm is not None and norm is not self._norm:  # each time costs a copy on the device
                self._record(norm)
                self._norm = norm
            if outermost:
                self._nans.before_update(norm, clipped=True)
