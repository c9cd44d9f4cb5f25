# SPDX-License-Identifier: Apache-2.0
"""When the gradients are looked at value by value."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from weakref import ref

from training_exporter.integrations.optimizer import loss_scale

if TYPE_CHECKING:
    from training_exporter.device.survey import Survey

logger = logging.getLogger("training_exporter")

Found = TypeVar("Found")


class SurveyWatch(Generic[Found]):
    """Looks on the first step, and then every so many steps. Nothing waits for the device.

    Told the same as LayerWatch, on the same thread; the optimiser's step is of no interest to it.

    Args:
        interval: returns the steps from one look to the next, 0 for none. Asked when a training
            begins.
        new_survey: makes what looks at a model.
        hand_on: takes what was found, and the step at which.
        count_dropped: takes how many looks were dropped.
    """

    def __init__(
        self,
        interval: Callable[[], int],
        new_survey: Callable[[Any], Survey[Found]],
        hand_on: Callable[[Found, int], object],
        count_dropped: Callable[[int], object],
    ) -> None:
        self._ask_interval = interval
        self._new_survey = new_survey
        self._hand_on = hand_on
        self._count_dropped = count_dropped
        self._refused = ""
        self.discard()

    def discard(self) -> None:
        """Forget the model and the steps so far."""
        self._model: Callable[[], Any] = lambda: None
        self._survey: Survey[Found] | None = None
        self._interval = 0
        self._dropped = 0
        self._scaler: Any = None
        self._step = 0
        self._next = 0
        self._due = False
        self._asked: deque[int] = deque()

    def begin_step(self, step: int, model: Any, optimizer: object = None) -> None:
        """An optimiser step begins. May be said again."""
        if model is None or (step == self._step and model is self._model()):
            return
        if model is not self._model() or step < self._step:
            self._start(model, optimizer)
        self._due = step >= self._next
        self._step = step

    @property
    def due(self) -> bool:
        """Whether the next `before_clipping` looks."""
        return self._due and self._survey is not None

    def before_clipping(self) -> None:
        """The gradients of the step are complete. Only the first call in a step counts."""
        survey = self._survey
        if self._due and survey is not None:
            self._due, self._next = False, self._step + self._interval
            dropped = survey.dropped
            survey.before_clipping(loss_scale(self._scaler))
            if survey.dropped == dropped:
                self._asked.append(self._step)

    def renumber(self, assumed: int, step: int) -> None:
        """The step that began with one number, if it did, has another after all."""
        if self._step == assumed:
            self._next += step - assumed
            self._step = step
            if self._asked and self._asked[-1] == assumed:
                self._asked[-1] = step

    def collect(self, *, wait: bool = False) -> None:
        """Hand on what has arrived.

        Args:
            wait: wait for all of it, which is for the end of training only.
        """
        survey = self._survey
        if survey is None:
            return
        arrived = [(found, self._asked.popleft()) for found in survey.collect(wait=wait)]
        for found, step in arrived:  # of which none is left in the queue, should this raise
            self._hand_on(found, step)
        if survey.dropped > self._dropped:
            dropped = survey.dropped - self._dropped
            self._dropped += dropped
            self._count_dropped(dropped)

    def _start(self, model: Any, optimizer: object) -> None:
        from training_exporter.device.layers import reason_against

        self.discard()
        self._model = ref(model)
        self._interval = self._ask_interval()
        if not self._interval:
            return
        reason = reason_against(model.named_parameters(), optimizer)
        if not reason:
            self._scaler = getattr(optimizer, "scaler", None)
            self._survey = self._new_survey(model)
        elif reason != self._refused:
            self._refused = reason
            logger.info("no histogram of gradients: %s", reason)
