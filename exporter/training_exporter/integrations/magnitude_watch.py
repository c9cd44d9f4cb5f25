# SPDX-License-Identifier: Apache-2.0
"""When the values in the gradients are counted by their magnitudes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol
from weakref import ref

from training_exporter.integrations.optimizer import loss_scale
from training_exporter.layers.magnitudes import Magnitudes

if TYPE_CHECKING:
    from training_exporter.device.magnitudes import MagnitudePass

logger = logging.getLogger("training_exporter")


class MagnitudeWatcher(Protocol):
    """What takes in the passes."""

    def observe_layers(self, state: None, /, *, dropped: int) -> object: ...

    def observe_magnitudes(self, found: Magnitudes, /) -> object: ...


class MagnitudeWatch:
    """Counts on the first step, and then every so many steps. Nothing waits for the device.

    Told the same as LayerWatch, on the same thread; the optimiser's step is of no interest to it.

    Args:
        watcher: takes what was found.
        interval: steps from one pass to the next, at least 1.
    """

    def __init__(self, watcher: MagnitudeWatcher, interval: int) -> None:
        self._watcher = watcher
        self._interval = interval
        self._refused = ""
        self.discard()

    def discard(self) -> None:
        """Forget the model and the steps so far."""
        self._model: Callable[[], Any] = lambda: None
        self._passes: MagnitudePass | None = None
        self._dropped = 0
        self._scaler: Any = None
        self._step = 0
        self._next = 0
        self._due = False

    def begin_step(self, step: int, model: Any, optimizer: object = None) -> None:
        """An optimiser step begins. May be said again."""
        if model is None or (step == self._step and model is self._model()):
            return
        if model is not self._model() or step < self._step:
            self._start(model, optimizer)
        self._due = step >= self._next
        self._step = step

    def before_clipping(self) -> None:
        """The gradients of the step are complete. Only the first call in a step counts."""
        if self._due and self._passes is not None:
            self._due, self._next = False, self._step + self._interval
            self._passes.before_clipping(loss_scale(self._scaler))

    def renumber(self, assumed: int, step: int) -> None:
        """The step that began with one number, if it did, has another after all."""
        if self._step == assumed:
            self._next += step - assumed
            self._step = step

    def collect(self, *, wait: bool = False) -> None:
        """Hand on what has arrived.

        Args:
            wait: wait for all of it, which is for the end of training only.
        """
        if self._passes is None:
            return
        for found in self._passes.collect(wait=wait):
            self._watcher.observe_magnitudes(found)
        if self._passes.dropped > self._dropped:
            dropped = self._passes.dropped - self._dropped
            self._dropped += dropped
            self._watcher.observe_layers(None, dropped=dropped)

    def _start(self, model: Any, optimizer: object) -> None:
        from training_exporter.device.layers import reason_against
        from training_exporter.device.magnitudes import MagnitudePass

        self.discard()
        self._model = ref(model)
        reason = reason_against(model.named_parameters(), optimizer)
        if not reason:
            self._scaler = getattr(optimizer, "scaler", None)
            self._passes = MagnitudePass(model)
        elif reason != self._refused:
            self._refused = reason
            logger.info("no histogram of gradients: %s", reason)
