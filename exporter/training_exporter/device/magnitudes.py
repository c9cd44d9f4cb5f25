# SPDX-License-Identifier: Apache-2.0
"""Counts the values in the gradients by powers of two, without waiting for the device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import torch

from training_exporter.device.buckets import bits_of, counts_of, wide
from training_exporter.device.layer_index import Index
from training_exporter.device.sheets import Sheets, Values
from training_exporter.device.survey import Survey
from training_exporter.layers.magnitudes import (
    RAW_HIGHEST,
    RAW_LOWEST,
    SUBNORMAL_END,
    Magnitudes,
    RawCounts,
    combine,
)

CHUNK: Final = 2**23
"""Bytes of gradients that are looked at together: what is made of them is five times as much, and
no count reaches 2**24, beyond which float32 does not count on."""

CHUNK_ON_CPU: Final = 2**19
"""The same on the CPU, where all of it then stays in the cache."""

_EXPONENTS: Final = RAW_HIGHEST - RAW_LOWEST + 1
_COLUMNS: Final = _EXPONENTS + 4


class _Look:
    """One look, on its way to the host."""

    def __init__(self) -> None:
        self.scale: Values = [1.0]
        self._found: dict[torch.device, Values] = {}

    def read(self, index: Index, sheets: Sheets) -> None:
        rows: dict[torch.device, list[torch.Tensor]] = {}
        for group in index.groups:
            _, gradients = group.gradients(set())
            row = rows.setdefault(group.device, [])
            row.extend(count(chunk) for chunk in _chunks(gradients))
        for device, counted in rows.items():
            if counted:
                into = self._found[device] = [None] * _COLUMNS
                sheets[device].write_vector(into, range(_COLUMNS), _added(counted))

    def finish(self) -> Magnitudes:
        return combine([_raw(row) for row in self._found.values()], self.scale[0])


class MagnitudePass(Survey[Magnitudes]):
    """Counts the values of a model's gradients by powers of two. Of a complex gradient, real and
    imaginary parts are counted."""

    def _prepare(self, index: Index) -> None:
        """All models look alike to it."""

    def _columns(self, device: torch.device) -> int:
        return _COLUMNS

    def _look(self) -> _Look:
        return _Look()


def count(values: torch.Tensor) -> torch.Tensor:
    """RawCounts of up to CHUNK bytes of values of any shape, as a 1-dim tensor on their device."""
    layout = bits_of(values.dtype)
    magnitudes = values.to(layout.floats).abs()
    bits = magnitudes.view(layout.whole)
    found = [
        (bits == 0).sum(), (magnitudes < SUBNORMAL_END).sum(), (bits >= layout.infinity).sum(),
    ]  # fmt: skip
    # A fraction other than 0 carries over into the exponent: a bucket includes its upper bound.
    above = bits.clamp(max=layout.infinity).add_((1 << layout.fraction) - 1)
    exponents = above.bitwise_right_shift_(layout.fraction).sub_(layout.bias)
    places = exponents.clamp_(RAW_LOWEST, RAW_HIGHEST).sub_(RAW_LOWEST)
    dtype = wide(values.device)
    total = magnitudes.nan_to_num_(0.0, posinf=0.0).sum(dtype=dtype)
    others = torch.stack([*[each.to(dtype) for each in found], total])
    return torch.cat([counts_of(places, _EXPONENTS), others])


def _added(counted: Sequence[torch.Tensor]) -> torch.Tensor:
    return counted[0] if len(counted) == 1 else torch.stack(list(counted)).sum(0)


def _chunks(gradients: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Gradients of one dtype and device: small ones together, large ones in parts, so that few and
    bounded calls do it."""
    if not gradients:
        return
    waiting: list[torch.Tensor] = []
    chunk = CHUNK_ON_CPU if gradients[0].is_cpu else CHUNK
    most = room = chunk // max(4, gradients[0].element_size())
    for gradient in gradients:
        for part in _parts(gradient, most):
            if part.numel() > room and waiting:
                yield _together(waiting)
                waiting, room = [], most
            waiting.append(part)
            room -= part.numel()
    if waiting:
        yield _together(waiting)


def _parts(tensor: torch.Tensor, most: int) -> Iterator[torch.Tensor]:
    """Views of up to so many elements. Not of the flat tensor: flattening may copy it."""
    if tensor.numel() <= most:
        yield tensor
        return
    longest = max(range(tensor.dim()), key=lambda dimension: tensor.shape[dimension])
    for half in tensor.tensor_split(2, longest):
        yield from _parts(half, most)


def _together(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat([part.reshape(-1) for part in parts])


def _raw(row: Sequence[Any]) -> RawCounts:
    return RawCounts(row[:_EXPONENTS], *row[_EXPONENTS:])
