# SPDX-License-Identifier: Apache-2.0
"""The forward passes of a Trainer: the part of its steps in which no rank waits for another.

Under DDP the ranks meet in the backward pass, where all of them seem equally slow. What tells them
apart is the time before that. Two waits for others lie in it and are left out: the number of tokens
is gathered once the data is there, and buffers come from the first rank when the forward pass
begins.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch.nn.parallel import DistributedDataParallel

from training_exporter import catalog
from training_exporter.boundary import StepBoundary
from training_exporter.integrations.step_phases import StepPhases
from training_exporter.integrations.trainer_wraps import wrap_for_now
from training_exporter.status import RunStatus
from training_exporter.timing.step_timer import StepTimer


class ForwardWatcher(Protocol):
    """What takes the number of forward passes, and what else they touch."""

    boundary: StepBoundary
    timer: StepTimer

    @property
    def status(self) -> RunStatus: ...

    def observe_forward(self, *, begun: int = 0, ended: int = 0) -> object: ...


class ForwardPasses:
    """Counts them as they begin and end on the host, and marks their time on the device.

    The first pass of a step has begun when the data of the step is there: who hangs in the data
    loader is then behind those who wait for it, wherever they do. For the training thread; nothing
    of ours is raised into it.
    """

    def __init__(self, exporter: ForwardWatcher, phases: StepPhases) -> None:
        self._exporter = exporter
        self._phases = phases
        self._data_is_there = False
        self._counted = False
        self._unwrap: Callable[[], object] | None = None

    def start(self) -> None:
        """A training begins; may raise."""
        self.step_ends()
        self._exporter.observe_forward()

    def data_arrived(self) -> None:
        """The batches of a step have been fetched; may raise, and may be said again."""
        if not self._data_is_there:
            self._data_is_there = self._counted = True
            self._exporter.timer.data_arrived()
            self._exporter.observe_forward(begun=1)

    def step_ends(self) -> None:
        """The next step waits for its data from here."""
        self._data_is_there = self._counted = False

    def around_gather(self, gather: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Ranks exchange something. Before a step it is the number of tokens in its batches."""
        with self._exporter.boundary.at(catalog.STEP_ERROR):
            if self._exporter.status.state == catalog.RUNNING:
                self.data_arrived()
        return gather(*args, **kwargs)

    def around_loss(self, compute_loss: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """The loss of a micro-batch in a training step is computed."""
        with self._exporter.boundary.at(catalog.STEP_ERROR):
            self._begin(kwargs["model"] if "model" in kwargs else args[0])
        try:
            loss = compute_loss(*args, **kwargs)
        finally:
            unwrap, self._unwrap = self._unwrap, None
            if unwrap is not None:
                unwrap()
        with self._exporter.boundary.at(catalog.STEP_ERROR):
            self._phases.end_forward()
            self._exporter.observe_forward(ended=1)
        return loss

    def _begin(self, model: Any) -> None:
        parallel = getattr(model, "_orig_mod", model)
        if isinstance(parallel, DistributedDataParallel):
            # Only for now: who copies or saves the model must not meet anything of ours in it.
            self._unwrap = wrap_for_now(parallel, "_sync_buffers", self._around_sync)
        if not self._counted:
            self._exporter.observe_forward(begun=1)
        self._counted = False
        self._phases.begin_forward()

    def _around_sync(self, sync: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        with self._exporter.boundary.at(catalog.STEP_ERROR):
            self._phases.begin_meeting()
        synced = sync(*args, **kwargs)
        with self._exporter.boundary.at(catalog.STEP_ERROR):
            self._phases.end_meeting()
        return synced
