# SPDX-License-Identifier: Apache-2.0
"""NaN forensics on the training thread: what a Trainer and a hand-written loop have in common.

Without torch there are only the numbers of the steps to go by, and torch is not loaded for more.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol
from weakref import ref

from training_exporter.catalog import STEP_ERROR
from training_exporter.config import ExporterConfig
from training_exporter.device.recorder import StepRecorder, Watcher
from training_exporter.forensics import report
from training_exporter.forensics.report import Findings, Gap, ModuleFinding
from training_exporter.forensics.store import default_directory
from training_exporter.forensics.watch import Event, NonFiniteWatch, compose
from training_exporter.integrations.classes import classes_of
from training_exporter.integrations.nan_reports import NanReports, ReportTaker
from training_exporter.signals import StepSignals

if TYPE_CHECKING:
    from torch import nn

    from training_exporter.device.inspection import Inspector, Investigation
    from training_exporter.integrations.module_watch import ModuleWatch

_LOOKED_AT: Final = (report.INPUTS, report.PARAMETERS, report.GRADIENTS)
_NO_TORCH: Final = "torch was not in use"
_AFTER_ERROR: Final = "the training had ended with an error, after which a device is not waited for"
_LOST: Final = "the device failed before it was known"


class NanWatcher(Watcher, ReportTaker, Protocol):
    """What the forensics need of the exporter."""


class FirstLayer(Protocol):
    """Names the first layer with a non-finite gradient, if it was looked for on that very step."""

    def __call__(self, step: int, /, *, wait: bool) -> str | None: ...


class _Open(NamedTuple):
    event: Event
    begun: Investigation | None
    why_unseen: str = _NO_TORCH


class NanWatch:
    """Hands the steps on to the exporter, and writes a report on the first NaN or Inf.

    On a healthy step it keeps references to the inputs and compares a few numbers. All methods
    belong to the training thread and into the exporter's error boundary.

    Args:
        exporter: takes the steps and the notes on reports.
        config: its settings; None switches the forensics off.
        first_layer: asks the pass over the layers.
    """

    def __init__(
        self,
        exporter: NanWatcher,
        config: ExporterConfig | None,
        *,
        first_layer: FirstLayer | None = None,
    ) -> None:
        self._exporter = exporter
        self._first_layer = first_layer
        self._on = config is not None and config.forensics
        quiet_steps = config.forensics_quiet_steps if config is not None else 1
        self._chosen_directory = config.forensics_dir if config is not None else None
        self._hooks = config is not None and config.forensics_hooks
        self._watch = NonFiniteWatch(quiet_steps=quiet_steps)
        self._reports = NanReports(exporter, default_directory())
        self.write_below(None)
        self._inspector: Inspector | None = None
        self._modules: ModuleWatch | None = None
        self._model: Callable[[], nn.Module | None] = lambda: None
        self._coming = 1
        self._closed = 0
        self._outstanding = 0
        self._looked = self._broken = False
        self._after_error = False
        self._open: list[_Open] = []

    def write_below(self, output_dir: str | None) -> None:
        """Say where the trainer writes. A folder that the user configured wins."""
        chosen = self._chosen_directory
        directory = default_directory(output_dir) if chosen is None else Path(chosen)
        self._reports.directory = directory.expanduser().absolute()

    def start(self) -> None:
        """A training begins, with neither a step nor a silence of the one before."""
        self.discard()
        self._watch.discard()

    # A step

    def begin_step(self, step: int, model: nn.Module | None) -> None:
        """The step that comes, and its model."""
        self._coming = step
        if model is not None and model is not self._model():
            self.watch_model(model)

    def watch_model(self, model: nn.Module) -> None:
        """The model whose weights are to be looked at. It is not kept alive."""
        self._model = ref(model)

    def keep(self, inputs: Any) -> None:
        """Keep the inputs of a micro-batch for a later look; tensors in any usual container."""
        if self._on and (inspector := self._inspecting()) is not None:
            inspector.keep(inputs)

    def modules(self) -> AbstractContextManager[Any]:
        """`with watch.modules():` around a forward pass, which then is looked into if that was
        asked for. Raises only what the forward pass does."""
        if self._hooks and self._on:
            with self._exporter.boundary.at(STEP_ERROR):
                return self._watched_modules()
        return nullcontext()

    def _watched_modules(self) -> AbstractContextManager[Any]:
        model, inspector = self._model(), self._inspecting()
        if model is None or inspector is None or not self._watch.awaits_nan(self._outstanding):
            return nullcontext()
        if inspector.capturing(model):
            return nullcontext()
        if self._modules is None:
            from training_exporter.integrations.module_watch import ModuleWatch

            self._modules = ModuleWatch(lambda: self._exporter.boundary.at(STEP_ERROR))
        return self._modules.watched(model, self._coming)

    def add_loss(self, loss: object) -> None:
        """The loss of a micro-batch after its backward pass. Never waits for a device."""
        if self._on and self._is_broken(loss):
            self._broken = True

    def before_clipping(self) -> None:
        """Look at the gradients, if the loss is known to be broken already. Never raises."""
        if self._broken:
            with self._exporter.boundary.at(STEP_ERROR):
                self._look(clipped=False)

    def before_update(self, norm: object, *, clipped: bool) -> None:
        """Look at weights, and gradients unless they are clipped, if the norm is known to be
        broken."""
        if self._on and self._is_broken(norm):
            self._look(clipped=clipped)

    def close_step(self, step: int) -> None:
        """Everything since the last call belonged to this step."""
        self._closed, self._coming = step, step + 1
        self._broken = self._looked = False
        self._outstanding += 1
        if self._inspector is not None:
            self._inspector.close_step(step)

    def discard(self) -> None:
        """Forget what came since the last closed step."""
        self._broken = self._looked = False
        if self._inspector is not None:
            self._inspector.discard()

    # Steps that are known

    def observe(self, signals: StepSignals) -> None:
        """Hand on a step, and begin to investigate it where that is due. Never raises."""
        self._exporter.observe(signals)
        self._outstanding -= 1
        if self._on:
            with self._exporter.boundary.at(STEP_ERROR):
                event = self._watch.observe(signals)
                if event is not None:
                    self._open.append(self._begun(event))

    def count_dropped(self, steps: int, series: int = 0) -> None:
        """Hand on how many steps and series were dropped."""
        self._exporter.count_dropped(steps, series)
        self._outstanding -= steps

    def hand_on(self, recorder: StepRecorder, *, wait: bool = False) -> None:
        """Hand on the steps that have arrived, and report on what is known by now.

        Args:
            recorder: has the steps.
            wait: wait for all of them, which is for the end of training only.
        """
        recorder.hand_on(self, wait=wait)
        self._reports.look()
        if self._open:
            self._report_known(wait=wait)

    def finish(self, recorder: StepRecorder, error: BaseException | None) -> None:
        """The training ends: write what is known, and let go of all tensors.

        After an error nobody waits for a device.
        """
        self._after_error = error is not None
        try:
            self.hand_on(recorder, wait=error is None)
            self._reports.finish()
        finally:
            self._after_error = False
            self._inspector = self._modules = None

    def _begun(self, event: Event) -> _Open:
        model, inspector = self._model(), self._inspecting()
        if inspector is None:
            return _Open(event, None)
        if self._after_error and not _in_host_memory(model):
            return _Open(event, None, _AFTER_ERROR)
        step, now = event.signals.step, max(self._closed, event.signals.step)
        return _Open(event, inspector.begin(step, model, now=now, classes=classes_of(model)))

    def _report_known(self, *, wait: bool) -> None:
        waiting, self._open = self._open, []
        for one in waiting:
            findings = self._findings(one, wait=wait)
            if findings is None:
                self._open.append(one)
            else:
                self._write(one.event, findings, wait=wait)

    def _findings(self, one: _Open, *, wait: bool) -> Findings | None:
        """What was found, None while it is on its way."""
        if one.begun is None:
            return _unseen(one.why_unseen)
        modules = self._modules
        try:
            if wait:
                one.begun.wait()
                if modules is not None:
                    modules.wait(one.event.signals.step)
            step = one.event.signals.step
            if one.begun.arrived() and (modules is None or modules.arrived(step)):
                return one.begun.findings()
        except RuntimeError:  # what torch raises once a device is lost
            return _unseen(_LOST)
        return _unseen(_AFTER_ERROR) if self._after_error else None

    def _write(self, event: Event, findings: Findings, *, wait: bool) -> None:
        step = event.signals.step
        module: ModuleFinding | None = None
        if self._modules is not None:
            module, gaps = self._modules.take(step)
            findings = findings._replace(gaps=(*findings.gaps, *gaps))
        layer = None
        if self._first_layer is not None:
            with self._exporter.boundary.at(STEP_ERROR):  # without it there is a report still
                layer = self._first_layer(step, wait=wait)
        about = self._reports.about()
        self._reports.write(compose(event, findings, about, first_layer=layer, first_module=module))

    # The device

    def _inspecting(self) -> Inspector | None:
        """What looks at tensors; None where torch is not loaded, so that there are none."""
        if self._inspector is None and "torch" in sys.modules:
            from training_exporter.device.inspection import Inspector

            self._inspector = Inspector()
        return self._inspector

    def _is_broken(self, value: object) -> bool:
        if isinstance(value, float):
            return value - value != 0.0
        inspector = self._inspecting()
        return inspector is not None and inspector.broken_on_host(value)

    def _look(self, *, clipped: bool) -> None:
        """Look before the update, once in a step that would get a report."""
        model, inspector, step = self._model(), self._inspecting(), self._coming
        if model is None or inspector is None or self._looked:
            return
        if self._watch.awaits_nan(self._outstanding):
            self._looked = True
            inspector.look_before_update(step, model, clipped=clipped)


def _in_host_memory(model: nn.Module | None) -> bool:
    return model is None or all(parameter.is_cpu for parameter in model.parameters())


def _unseen(why: str) -> Findings:
    return Findings(gaps=tuple([Gap(what, why) for what in _LOOKED_AT]))
