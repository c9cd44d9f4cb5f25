# SPDX-License-Identifier: Apache-2.0
"""StepRecorder: tensors and floats in, StepSignals out, and nobody waits for the device."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from numbers import Real
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from training_exporter.signals import StepSignals
from training_exporter.values import clean_text

if TYPE_CHECKING:
    import torch

    from training_exporter.device.rows import AsyncRows

    OpenRows = Callable[[torch.device, int, int], AsyncRows | None]

MAX_GROUPS: Final = 16
"""Parameter groups whose learning rate is recorded."""

_COLUMNS: Final = ("loss", "tokens", "samples", "grad_norm", "loss_scale")
_LOSS, _TOKENS, _SAMPLES, _GRAD_NORM, _LOSS_SCALE = range(len(_COLUMNS))
_WIDTH: Final = len(_COLUMNS) + MAX_GROUPS


class Watcher(Protocol):
    """What takes finished steps."""

    def observe(self, signals: StepSignals, /) -> object: ...

    def count_dropped(self, steps: int, series: int, /) -> object: ...


class _Recording:
    """What is known of a step.

    Attributes:
        host: numbers by column.
        on_device: columns of which some part lies in the device row `slot`.
        spoilt: columns that miss a part, so that they have no value.
        groups: column of each parameter group's learning rate.
        lost: whether no row was free when one was needed.
    """

    __slots__ = ("groups", "host", "lost", "on_device", "slot", "spoilt")

    def __init__(self) -> None:
        self.host: dict[int, float] = {}
        self.on_device: set[int] = set()
        self.spoilt: set[int] = set()
        self.groups: dict[str, int] = {}
        self.slot: int | None = None
        self.lost = False

    def fields(self) -> dict[str, Any]:
        """The StepSignals fields that were recorded, once every value is on the host."""
        host, spoilt = self.host, self.spoilt
        for column in spoilt:
            host.pop(column, None)
        fields: dict[str, Any] = {
            _COLUMNS[column]: value for column, value in host.items() if column < len(_COLUMNS)
        }
        if self.groups:
            fields["learning_rates"] = {
                group: host[column] for group, column in self.groups.items() if column in host
            }
        return fields


class _Closed(NamedTuple):
    signals: StepSignals
    recording: _Recording


class StepRecorder:
    """Collects the values of one optimiser step after another, from one thread.

    Numbers and CPU tensors are read at once. The first tensor on another device opens a ring of
    rows on it (`device.rows`), into which its values are written and from which they are copied to
    the host while training goes on. A value may come partly as one and partly as the other, and
    None is ignored everywhere.

    Tensors are 0-dim or have one element, of any real dtype; they may require gradients. Everything
    else raises TypeError, a tensor with several elements ValueError, and the field has no value in
    that step: a sum without one of its parts would be a wrong one. The same holds for a tensor of
    which this process has only a shard, and for a device tensor given while a CUDA graph is being
    captured, which holds no number yet; these two raise nothing.

    Args:
        slots: steps that may be outstanding or not yet collected; beyond it steps are dropped.
        open_rows: makes the rows for a device, None for a device that can be read at once.

    Attributes:
        dropped: steps lost because no row was free.
        dropped_rates: learning rates not recorded because there were more than MAX_GROUPS groups.
    """

    def __init__(self, *, slots: int = 64, open_rows: OpenRows | None = None) -> None:
        if slots < 1:
            raise ValueError(f"slots must be at least 1, got {slots!r}")
        self.dropped = 0
        self.dropped_rates = 0
        self._slots = slots
        self._open_rows = open_rows
        self._rows: AsyncRows | None = None
        self._reported = (0, 0)
        self._current = _Recording()
        self._closed: deque[_Closed] = deque()
        self._arrived: list[StepSignals] = []

    def add_loss(self, value: object) -> None:
        """Add to the loss of this step."""
        self._record(_LOSS, value, add=True)

    def add_tokens(self, value: object) -> None:
        """Add to the tokens of this step."""
        self._record(_TOKENS, value, add=True)

    def add_samples(self, value: object) -> None:
        """Add to the rows of data of this step."""
        self._record(_SAMPLES, value, add=True)

    def set_grad_norm(self, value: object) -> None:
        """Set the gradient norm of this step; the last one counts."""
        self._record(_GRAD_NORM, value, add=False)

    def set_loss_scale(self, value: object) -> None:
        """Set the loss scale of this step; the last one counts."""
        self._record(_LOSS_SCALE, value, add=False)

    def set_learning_rate(self, group: str, value: object) -> None:
        """Set the learning rate of a parameter group in this step; the last one counts."""
        groups = self._current.groups
        group = clean_text(group)
        column = groups.get(group)
        if column is None:
            if len(groups) == MAX_GROUPS:
                self.dropped_rates += 1
                return
            column = groups[group] = len(_COLUMNS) + len(groups)
        self._record(column, value, add=False)

    def finish(self, *, step: int, timestamp: float, **host_fields: Any) -> None:
        """Close the step and start its values on their way to the host.

        Args:
            step: its number.
            timestamp: Unix time in seconds at which it ended.
            host_fields: any other field of StepSignals; what was recorded goes before it.

        Raises:
            TypeError: StepSignals has no such field. The step is forgotten.
        """
        recording, self._current = self._current, _Recording()
        if recording.lost or len(self._closed) + len(self._arrived) >= self._slots:
            self.dropped += 1
            self._release(recording)
            return
        try:
            signals = StepSignals(step, timestamp, **host_fields)
            if self._rows is not None and recording.slot is not None:
                self._rows.send(recording.slot)
        except BaseException:
            self._release(recording)
            raise
        self._closed.append(_Closed(signals, recording))

    def discard(self) -> None:
        """Forget what was recorded since the last finish."""
        recording, self._current = self._current, _Recording()
        self._release(recording)

    def completed(self) -> list[StepSignals]:
        """The steps whose values have arrived since the last call, in order. Never waits."""
        self._collect(wait=False)
        arrived, self._arrived = self._arrived, []
        return arrived

    def flush(self) -> list[StepSignals]:
        """All outstanding steps, in order. Waits for the device: for the end of training only."""
        self._collect(wait=True)
        arrived, self._arrived = self._arrived, []
        return arrived

    def hand_on(self, watcher: Watcher, *, wait: bool = False) -> None:
        """Give the watcher the steps that have arrived, and tell it what was dropped.

        Args:
            watcher: takes the steps; the exporter.
            wait: wait for all outstanding steps, which is for the end of training only.
        """
        steps, rates = self._reported
        self._reported = (self.dropped, self.dropped_rates)
        watcher.count_dropped(self.dropped - steps, self.dropped_rates - rates)
        for signals in self.flush() if wait else self.completed():
            watcher.observe(signals)

    def _record(self, column: int, value: object, *, add: bool) -> None:
        if value is None:
            return
        current = self._current
        if not add:
            self._forget(column)
        try:
            now = value if isinstance(value, float | int) else self._resolve(value)
            if now is None:
                current.spoilt.add(column)
            elif isinstance(now, float | int):
                current.host[column] = current.host.get(column, 0.0) + now
            else:
                self._write(column, now)
        except BaseException as error:
            current.spoilt.add(column)
            if type(error) in (TypeError, ValueError):  # ours, which do not know of what
                raise type(error)(f"{_name(column)}: {error}") from None
            raise

    def _forget(self, column: int) -> None:
        current = self._current
        current.host.pop(column, None)
        current.on_device.discard(column)
        current.spoilt.discard(column)

    def _resolve(self, value: object) -> float | torch.Tensor | None:
        """A number if it can be had at once, else a 0-dim tensor for the row, else None."""
        torch = sys.modules.get("torch")  # where torch is not loaded, nothing can be a tensor
        if torch is None or not isinstance(value, torch.Tensor):
            if isinstance(value, Real):
                return float(value)
            raise TypeError(f"expected a number or a tensor, got {type(value).__name__}")
        at_once = self._rows is None and self._open_rows is None
        if at_once and type(value) is torch.Tensor and value.is_cpu and not value.dim():
            return float(value.tolist())  # all there is on a CPU, at a tenth of the way round
        from training_exporter.device import rows as device_rows

        tensor = device_rows.single(value)
        if tensor is None:
            return None
        if self._rows is None:
            if device_rows.capturing_on(tensor.device):
                return None
            open_rows = self._open_rows or device_rows.open_rows
            self._rows = open_rows(tensor.device, self._slots, _WIDTH)
        if self._rows is None or (tensor.is_cpu and self._rows.device.type != "cpu"):
            return device_rows.read(tensor)
        return None if self._rows.capturing() else tensor

    def _write(self, column: int, tensor: torch.Tensor) -> None:
        current, rows = self._current, self._rows
        if rows is None or current.lost:
            return
        if current.slot is None:
            current.slot = rows.acquire()
            if current.slot is None:
                current.lost = True  # for good: half a sum would be a wrong value
                return
        if column in current.on_device:
            rows.add(current.slot, column, tensor)
        else:
            rows.put(current.slot, column, tensor)
            current.on_device.add(column)

    def _release(self, recording: _Recording) -> None:
        if self._rows is not None and recording.slot is not None:
            self._rows.release(recording.slot)
            recording.slot = None

    def _collect(self, *, wait: bool) -> None:
        """Move the steps that have arrived, oldest first, and stop at one that has not."""
        rows, closed = self._rows, self._closed
        if not closed or (rows is not None and rows.capturing()):
            return
        while closed:
            signals, recording = closed[0]
            if rows is not None and recording.slot is not None:
                if wait:
                    rows.wait(recording.slot)
                elif not rows.arrived(recording.slot):
                    return
                self._fetch(rows, recording)
            closed.popleft()
            for name, value in recording.fields().items():
                setattr(signals, name, value)
            self._arrived.append(signals)

    def _fetch(self, rows: AsyncRows, recording: _Recording) -> None:
        if recording.slot is None:
            return
        values, host = rows.read(recording.slot), recording.host
        for column in recording.on_device:
            host[column] = host.get(column, 0.0) + values[column]
        self._release(recording)


def _name(column: int) -> str:
    return _COLUMNS[column] if column < len(_COLUMNS) else "learning_rate"
