# SPDX-License-Identifier: Apache-2.0
"""When the layers of a model are looked at, and what is remembered of it."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from math import isfinite
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Protocol
from weakref import ref

from training_exporter.config import ExporterConfig
from training_exporter.integrations.optimizer import loss_scale
from training_exporter.integrations.survey_watch import SurveyWatch
from training_exporter.layers.histograms import RawHistograms
from training_exporter.layers.magnitudes import Magnitudes
from training_exporter.layers.readings import LayerReader, LayerReading, ParameterNorms
from training_exporter.layers.shown import FirstNonFinite, LayerState
from training_exporter.snapshot import Snapshot

if TYPE_CHECKING:
    from training_exporter.device.layers import LayerPass
    from training_exporter.device.survey import Survey

    NewPass = Callable[[Any], LayerPass]

_NUMBERS: Final = 64  # more than there are steps of which something can be outstanding
_BEGINNINGS: Final = 8  # at the end several steps become known at once, each with a report perhaps

logger = logging.getLogger("training_exporter")


class LayerWatcher(Protocol):
    """What takes in the passes, and knows how the steps were.

    Attributes:
        histogram_interval: steps from one histogram of each layer to the next, 0 for none.
    """

    @property
    def snapshot(self) -> Snapshot: ...

    def observe_layers(self, state: LayerState | None, /, *, dropped: int) -> object: ...

    def observe_magnitudes(self, found: Magnitudes, /) -> object: ...

    @property
    def histogram_interval(self) -> int: ...

    def observe_histograms(self, found: RawHistograms, step: int, /) -> object: ...


class LayerWatch:
    """Runs a pass over the layers on the first step, and then every `layer_interval` steps; one
    over the gradients' values every `gradient_histogram_interval` steps; and one that makes
    histograms of each layer for who asks for them.

    `begin_step`, then `before_clipping` when all gradients of the step are there, `after_step` when
    the optimiser has done its step, and `collect` on every step. All from the training's thread.
    What they raise is for the caller's error boundary. Nothing waits for the device.

    Args:
        watcher: takes what was found.
        config: how often to look; None never does.
        new_pass: makes what reads a model; by default device.layers.LayerPass.
    """

    def __init__(
        self,
        watcher: LayerWatcher,
        config: ExporterConfig | None,
        *,
        new_pass: NewPass | None = None,
    ) -> None:
        self._surveys = [] if config is None else _surveys(watcher, config)
        config = config or ExporterConfig(layer_interval=0)
        self._watcher = watcher
        self._interval = config.layer_interval
        # Not the one that draws pages: that one has a lock.
        self._reader = LayerReader(grouping=config.layer_grouping, most=config.max_layers)
        self._new_pass = new_pass or _layer_pass
        self._refused = ""
        self._non_finite: Counter[str] = Counter()
        self._first: FirstNonFinite | None = None
        self._beginnings: deque[FirstNonFinite] = deque(maxlen=_BEGINNINGS)
        self._finite = True
        self.discard()

    def discard(self) -> None:
        """Forget the model and the steps so far: a training begins, or goes on elsewhere."""
        self._first, self._finite = None, True
        self._beginnings.clear()
        self._let_go()

    def _let_go(self) -> None:
        self._forget()
        for survey in self._surveys:
            survey.discard()

    def _forget(self) -> None:
        self._model: Callable[[], Any] = lambda: None
        self._passes: LayerPass | None = None
        self._dropped = 0
        self._scaler: Any = None
        self._step: int | None = None
        self._next = 0
        self._due = False
        self._reading = False
        self._numbers: dict[int, int] = {}
        self._waiting: deque[ParameterNorms] = deque()

    def begin_step(self, step: int, model: Any, optimizer: object = None) -> None:
        """An optimiser step begins. May be said again.

        Args:
            step: its number.
            model: the one that is trained, which is not kept alive; None when it is not known.
            optimizer: what does the steps; a gradient scaler in its `scaler` is taken into account.
        """
        for survey in self._surveys:
            survey.begin_step(step, model, optimizer)
        if not self._interval or step == self._step or model is None:
            return
        if model is not self._model() or step < (self._step or 0):
            self._start(model, optimizer)
        self._due = step >= self._next
        self._step = step

    @property
    def due(self) -> bool:
        """Whether the next `before_clipping` reads gradients."""
        return (self._due and self._passes is not None) or any(each.due for each in self._surveys)

    @property
    def reads(self) -> bool:
        """Whether the next `after_step` reads weights."""
        return self._reading

    def before_clipping(self) -> None:
        """The gradients of the step are complete. Only the first call in a step counts."""
        if self._due and self._passes is not None and self._step is not None:
            self._due, self._next = False, self._step + self._interval
            self._reading = True
            self._passes.before_clipping(self._step, loss_scale(self._scaler))
        for survey in self._surveys:
            survey.before_clipping()

    def after_step(self) -> None:
        """The optimiser has done its step."""
        if self._reading and self._passes is not None:  # else to ask torch costs ten times as much
            self._reading = False
            self._passes.after_step()

    def renumber(self, assumed: int, step: int) -> None:
        """The step that began with one number, if it did, has another after all."""
        for survey in self._surveys:
            survey.renumber(assumed, step)
        if self._step != assumed:
            return
        self._numbers.pop(assumed, None)  # a number may come again, as in loops that count by epoch
        if step == assumed:
            return
        self._numbers[assumed] = step
        if len(self._numbers) > _NUMBERS:
            del self._numbers[next(iter(self._numbers))]
        self._next += step - assumed
        self._step = step

    def first_layer(self, step: int, *, wait: bool = False) -> str | None:
        """The layer in which gradients stopped being finite, if they did so at this very step.

        Ask once the step itself is known: a pass is on the way a little longer than its step, so
        what has arrived by now is collected before.

        Args:
            wait: as `collect` has it.
        """
        self.collect(wait=wait)
        return next((known.layer for known in self._beginnings if known.step == step), None)

    def collect(self, *, wait: bool = False) -> None:
        """Hand on what has arrived. A pass that is not finite waits until the step before it is
        known.

        Args:
            wait: wait for all of it, which is for the end of training only.
        """
        for survey in self._surveys:
            survey.collect(wait=wait)
        if self._passes is None:
            return
        self._waiting.extend(map(self._numbered, self._passes.collect(wait=wait)))
        last: ParameterNorms | None = None
        while self._waiting and (wait or self._is_judged(self._waiting[0])):
            last = self._waiting.popleft()
            self._look_for_non_finite(last)
        dropped = self._passes.dropped - self._dropped
        self._dropped += dropped
        if last is not None:
            state = LayerState(last, MappingProxyType({**self._non_finite}), self._first)
            self._watcher.observe_layers(state, dropped=dropped)
        elif dropped:
            self._watcher.observe_layers(None, dropped=dropped)

    def finish(self, error: BaseException | None) -> None:
        """The training is over, and its steps are known. Where gradients stopped being finite stays
        known.

        Args:
            error: what ended it. After one the device may hang, so nothing is waited for.
        """
        try:
            self.collect(wait=error is None)
        finally:
            self._let_go()

    def _start(self, model: Any, optimizer: object) -> None:
        from training_exporter.device.layers import reason_against

        self._forget()
        self._model = ref(model)
        reason = reason_against(model.named_parameters(), optimizer)
        if not reason:
            self._scaler = getattr(optimizer, "scaler", None)
            self._passes = self._new_pass(model)
        elif reason != self._refused:
            self._refused = reason
            logger.info("no metrics of layers: %s", reason)

    def _numbered(self, norms: ParameterNorms) -> ParameterNorms:
        if not self._numbers:
            return norms
        step, weights_step = [
            self._numbers.get(number, number) for number in (norms.step, norms.weights_step)
        ]
        return norms._replace(step=step, weights_step=weights_step)

    def _is_judged(self, norms: ParameterNorms) -> bool:
        return _finite(norms) or self._last_step() >= norms.step - 1

    def _last_step(self) -> int:
        signals = self._watcher.snapshot.signals
        return signals.step if signals is not None else 0

    def _look_for_non_finite(self, norms: ParameterNorms) -> None:
        """Count the layers with a NaN or an infinity, and see where they began."""
        finite = _finite(norms)
        if not finite:
            reading = self._reader.read(norms)
            bad = [layer for layer, found in zip(reading.layers, reading.non_finite) if found]  # noqa: B905
            self._non_finite.update(bad)
            self._bound(reading)
            if self._finite:
                self._first = self._beginning(reading)
                if self._first is not None:
                    self._beginnings.append(self._first)
        self._finite = finite

    def _bound(self, reading: LayerReading) -> None:
        """Forget layers that there are no more, as when others are trained than before."""
        for layer in set(self._non_finite) - set(reading.layers):
            del self._non_finite[layer]

    def _beginning(self, reading: LayerReading) -> FirstNonFinite | None:
        """Where it began, None if it did so in an earlier step: since then the weights may be NaN,
        and with them the gradients of layers that had no part in it."""
        snapshot = self._watcher.snapshot
        layer = reading.first_non_finite()
        last = self._last_step()
        streak = max([state.streak for state in snapshot.non_finite.values()], default=0.0)
        begun = last - streak + 1 if streak else reading.step
        if layer is None or begun < reading.step or last < reading.step - 1:
            return None
        # A gradient scaler finds its scale by overflows, which are no news.
        level = logging.WARNING if self._scaler is None else logging.INFO
        logger.log(
            level,
            "non-finite gradients at step %d; the backward pass met them first in the layer %s",
            reading.step,
            layer,
        )
        return FirstNonFinite(layer, reading.step)


def _finite(norms: ParameterNorms) -> bool:
    return all(norm is None or isfinite(norm) for norm in norms.gradients)


def _layer_pass(model: Any) -> LayerPass:
    from training_exporter.device.layers import LayerPass

    return LayerPass(model)


def _surveys(watcher: LayerWatcher, config: ExporterConfig) -> list[SurveyWatch[Any]]:
    dropped = partial(_count_dropped, watcher)
    new_pass = partial(_histogram_pass, grouping=config.layer_grouping, most=config.max_layers)
    # Whether sinks are told is known when a training begins: the Trainer may say another rank then.
    histograms = SurveyWatch(
        lambda: watcher.histogram_interval, new_pass, watcher.observe_histograms, dropped
    )
    every = config.gradient_histogram_interval
    if not every:
        return [histograms]
    hand_on = watcher.observe_magnitudes
    magnitudes = SurveyWatch(
        lambda: every, _magnitude_pass, lambda found, _: hand_on(found), dropped
    )
    return [magnitudes, histograms]


def _count_dropped(watcher: LayerWatcher, dropped: int) -> None:
    watcher.observe_layers(None, dropped=dropped)


def _magnitude_pass(model: Any) -> Survey[Magnitudes]:
    from training_exporter.device.magnitudes import MagnitudePass

    return MagnitudePass(model)


def _histogram_pass(model: Any, *, grouping: str, most: int) -> Survey[RawHistograms]:
    from training_exporter.device.histograms import HistogramPass

    return HistogramPass(model, grouping=grouping, most=most)
