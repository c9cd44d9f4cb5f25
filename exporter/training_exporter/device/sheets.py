# SPDX-License-Identifier: Apache-2.0
"""What a look at the parameters finds, and its way to the host, device by device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from training_exporter.device.rows import AsyncVectors, read, single

Values = list["float | None"]
"""Numbers that arrive one by one."""


class Sheet:
    """What one look finds on one device, on its way to the host; on the CPU it is there at once."""

    def __init__(self, vectors: AsyncVectors | None, slot: int) -> None:
        self.vectors = vectors
        self.slot = slot
        self._filled = 0
        self._written: list[tuple[Values, Sequence[int]]] = []

    def write(self, into: Values, places: Sequence[int], values: Sequence[torch.Tensor]) -> None:
        """Let 0-dim tensors arrive at their places in `into`."""
        if not values:
            return
        if self.vectors is None:
            numbers: list[Any] = [value.tolist() for value in values]  # which counts as no sync
            _put(numbers, places, into)
        else:
            self.write_vector(into, places, torch.stack(list(values)))

    def write_vector(self, into: Values, places: Sequence[int], values: torch.Tensor) -> None:
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
Vectors = Mapping[torch.device, "AsyncVectors | None"]


def take_rows(vectors: Vectors) -> Sheets | None:
    """A free row on each device; None, and none taken, if one has none."""
    sheets: Sheets = {}
    for device, of_device in vectors.items():
        slot = 0 if of_device is None else of_device.acquire()
        if slot is None:
            release(sheets)
            return None
        sheets[device] = Sheet(of_device, slot)
    return sheets


def capturing(vectors: Vectors) -> bool:
    """Whether a graph is being captured on one of the devices, or on the current one while none is
    known."""
    if not vectors:
        cuda: Any = torch.cuda
        return bool(cuda.is_initialized() and cuda.is_current_stream_capturing())
    return any(of_device is not None and of_device.capturing() for of_device in vectors.values())


def write_scale(scale: object, into: Values, sheets: Sheets) -> None:
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


def _put(values: Iterable[float], places: Sequence[int], into: Values) -> None:
    for place, value in zip(places, values):  # noqa: B905 - takes only as many as there are places
        into[place] = value
