# SPDX-License-Identifier: Apache-2.0
"""One pass over the parameters, and its way to the host."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from training_exporter.device.layer_index import Group, Index
from training_exporter.device.rows import AsyncVectors, read, single
from training_exporter.layers.readings import ParameterNorms

_Values = list["float | None"]


class Sheet:
    """What one pass finds on one device, on its way to the host; on the CPU it is there at once."""

    def __init__(self, vectors: AsyncVectors | None, slot: int) -> None:
        self.vectors = vectors
        self.slot = slot
        self._filled = 0
        self._written: list[tuple[_Values, Sequence[int]]] = []

    def write(self, into: _Values, places: Sequence[int], values: Sequence[torch.Tensor]) -> None:
        """Let 0-dim tensors arrive at their places in `into`."""
        if not values:
            return
        if self.vectors is None:
            numbers: list[Any] = [value.tolist() for value in values]  # which counts as no sync
            _put(numbers, places, into)
        else:
            self.write_vector(into, places, torch.stack(list(values)))

    def write_vector(self, into: _Values, places: Sequence[int], values: torch.Tensor) -> None:
        """The same for a 1-dim tensor."""
        if self.vectors is None:
            _put(values.tolist(), places, into)
            return
        self.vectors.fill(self.slot, self._filled, values)
        self._filled += values.numel()
        self._written.append((into, places))

    def unpack(self) -> None:
        """Put what has arrived to its places, and give the row back."""
        if self.vectors is None:
            return
        values = iter(self.vectors.read(self.slot))
        for into, places in self._written:
            _put(values, places, into)
        self.vectors.release(self.slot)


Sheets = dict[torch.device, Sheet]


class OnePass:
    """One pass, from reading the gradients until all of it is on the host."""

    def __init__(self, step: int, index: Index, *, full: bool) -> None:
        self.sheets: dict[torch.device, Sheet] = {}
        self._step = step
        self._index = index
        self._full = full
        number = len(index.table.names)
        self._gradients: _Values = [None] * number
        self._weights: _Values = [None] * number
        self._changes: _Values = [None] * number
        self._scale: _Values = [1.0]
        self._unread: set[int] = set()

    def read(self, loss_scale: object) -> None:
        write_scale(loss_scale, self._scale, self.sheets)
        for group in self._index.groups:
            self._read_group(group, self.sheets[group.device])

    def _read_group(self, group: Group, sheet: Sheet) -> None:
        places, gradients = group.gradients(self._unread)
        if not self._full:
            if gradients:
                norms = torch._foreach_norm(gradients, 2.0, group.norm_dtype)
                sheet.write(self._gradients, places, norms)
            return
        norms = torch._foreach_norm(gradients + group.weights(), 2.0, group.norm_dtype)
        sheet.write(self._gradients, places, norms[: len(places)])
        sheet.write(self._weights, group.places, norms[len(places) :])
        if group.sample is not None:
            group.sample.take(group.sampled_weights())

    def read_changes(self) -> None:
        if not self._full:
            return
        for group in self._index.groups:
            if group.sample is None:
                continue
            start, sheet = 0, self.sheets[group.device]
            for norms in group.sample.change(group.sampled_weights()) or ():
                places = group.sampled_places[start : start + norms.numel()]
                sheet.write_vector(self._changes, places, norms)
                start += norms.numel()

    def send(self) -> None:
        send(self.sheets)

    def arrived(self, *, wait: bool) -> bool:
        """Whether all of it is on the host."""
        return arrived(self.sheets, wait=wait)

    def release(self) -> None:
        """Give the rows back unsent."""
        release(self.sheets)

    def finish(self, before: ParameterNorms | None) -> ParameterNorms:
        """What was found. Valid only once it has arrived.

        Args:
            before: the pass before, for what was not read in this one.
        """
        for sheet in self.sheets.values():
            sheet.unpack()
        gradients = _divided(self._gradients, self._scale[0])
        unread = frozenset(self._unread)
        if not self._full and before is not None:
            return before._replace(step=self._step, gradients=gradients, unread=unread)
        for group in self._index.groups:
            if group.sample is not None:
                _scale_up(self._changes, group.sampled_places, group.sample.factors)
        return ParameterNorms(
            self._step, self._index.table, gradients, self._weights, self._changes, self._step,
            unread,
        )  # fmt: skip


def write_scale(scale: object, into: _Values, sheets: Sheets) -> None:
    """Put a loss scale into a list of one, at once or with the sheets; None if it cannot be had.
    Without one the list stays as it is.

    Raises:
        TypeError, ValueError: neither a number nor a tensor with one element.
    """
    if scale is None:
        return
    if not isinstance(scale, torch.Tensor):
        into[0] = float(scale)  # type: ignore[arg-type]
        return
    into[0] = None
    tensor, sheet = single(scale), sheets.get(scale.device)
    if tensor is None:
        return
    if sheet is None and tensor.is_cpu:
        into[0] = read(tensor)  # a copy of it to the device may wait
        return
    others = (sheet for sheet in sheets.values() if sheet.vectors is not None)
    sheet = sheet or next(others, None)
    if sheet is not None:
        sheet.write(into, (0,), (tensor,))


def send(sheets: Sheets) -> None:
    """Start their way to the host."""
    for sheet in sheets.values():
        if sheet.vectors is not None:
            sheet.vectors.send(sheet.slot)


def arrived(sheets: Sheets, *, wait: bool) -> bool:
    """Whether all of them are on the host."""
    for sheet in sheets.values():
        if sheet.vectors is None:
            continue
        if wait:
            sheet.vectors.wait(sheet.slot)
        elif not sheet.vectors.arrived(sheet.slot):
            return False
    return True


def release(sheets: Sheets) -> None:
    """Give their rows back unsent."""
    for sheet in sheets.values():
        if sheet.vectors is not None:
            sheet.vectors.release(sheet.slot)


def _put(values: Iterable[float], places: Sequence[int], into: _Values) -> None:
    for place, value in zip(places, values):  # noqa: B905 - takes only as many as there are places
        into[place] = value


def _scale_up(values: _Values, places: Sequence[int], factors: Sequence[float]) -> None:
    for place, factor in zip(places, factors, strict=True):
        value = values[place]
        if value is not None:
            values[place] = value * factor


def _divided(values: _Values, scale: float | None) -> _Values:
    """The values without the loss scale; none of them if that is not known, or 0."""
    if scale == 1.0:
        return values
    return [None if value is None or not scale else value / scale for value in values]
