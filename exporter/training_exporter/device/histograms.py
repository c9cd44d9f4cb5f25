# SPDX-License-Identifier: Apache-2.0
"""Histograms of gradients and weights by layer, without waiting for the device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import inf
from typing import Any, Final

import torch

from training_exporter.device.buckets import bits_of, counts_of, wide
from training_exporter.device.layer_index import Index
from training_exporter.device.sampling import evenly
from training_exporter.device.sheets import Sheets, Values
from training_exporter.device.survey import Survey
from training_exporter.layers.histograms import (
    COLUMNS,
    LOWEST,
    NON_FINITE,
    PER_OCTAVE,
    SIDE,
    RawHistograms,
)
from training_exporter.layers.names import AUTO, LayerNames, name_layers

SAMPLE: Final = 2**18
"""Elements of a parameter that are looked at, at even distances: what is made of them takes some
10 MB for a moment, however large the parameter, and the shape is the same."""

_PART_BITS: Final = PER_OCTAVE.bit_length() - 1
_EXTREMES: Final = 2


class _Look:
    """One look, on its way to the host."""

    def __init__(self, names: LayerNames) -> None:
        self.scale: Values = [1.0]
        self._names = names
        self._gradients: dict[str, list[Values]] = {}
        self._parameters: dict[str, list[Values]] = {}

    def read(self, index: Index, sheets: Sheets) -> None:
        gradients: dict[tuple[torch.device, str], list[torch.Tensor]] = {}
        weights: dict[tuple[torch.device, str], list[torch.Tensor]] = {}
        for group in index.groups:
            places, there = group.gradients(set())
            for into, of, tensors in (
                (gradients, places, there),
                (weights, group.places, group.weights()),
            ):
                for place, tensor in zip(of, tensors, strict=True):
                    layer = self._names.layers[self._names.of_parameter[place]]
                    into.setdefault((group.device, layer), []).append(tensor)
        _write(gradients, self._gradients, sheets)
        _write(weights, self._parameters, sheets)

    def finish(self) -> RawHistograms:
        gradients: Any = self._gradients  # the sheets have put numbers everywhere
        parameters: Any = self._parameters
        return RawHistograms(gradients, parameters, self.scale[0])


class HistogramPass(Survey[RawHistograms]):
    """Counts the values of a model's gradients and weights by layer, of large ones a sample.

    Args:
        model, options: as `Survey` has them.
        grouping, most: as `name_layers` has them.
    """

    def __init__(
        self, model: Any, *, grouping: str = AUTO, most: int = 64, slots: int = 2, **options: Any
    ) -> None:
        super().__init__(model, slots=slots, **options)
        self._grouping = grouping
        self._most = most

    def _prepare(self, index: Index) -> None:
        self._names = name_layers(index.table.names, grouping=self._grouping, most=self._most)
        self._layers = {
            group.device: {
                self._names.of_parameter[place]
                for other in index.groups
                if other.device == group.device
                for place in other.places
            }
            for group in index.groups
        }

    def _columns(self, device: torch.device) -> int:
        return 2 * COLUMNS * len(self._layers[device])

    def _look(self) -> _Look:
        return _Look(self._names)


def _write(
    tensors: dict[tuple[torch.device, str], list[torch.Tensor]],
    into: dict[str, list[Values]],
    sheets: Sheets,
) -> None:
    for (device, layer), of_layer in tensors.items():
        rows = [_row(values, stands_for) for values, stands_for in _pieces(of_layer)]
        if rows:
            row: Values = [None] * COLUMNS
            into.setdefault(layer, []).append(row)
            sheets[device].write_vector(row, range(COLUMNS), _together(rows))


def _pieces(tensors: Iterable[torch.Tensor]) -> Iterator[tuple[torch.Tensor, float]]:
    """Up to SAMPLE values each, and how many values of the tensors each stands for: those of small
    tensors together, so that few calls do it, and of large ones a sample."""
    waiting: list[torch.Tensor] = []
    room = SAMPLE
    for tensor in tensors:
        if tensor.numel() > SAMPLE:
            sample = evenly(tensor, SAMPLE)
            yield sample, tensor.numel() / sample.numel()
            continue
        if waiting and (tensor.numel() > room or tensor.dtype is not waiting[0].dtype):
            yield torch.cat(waiting), 1.0
            waiting, room = [], SAMPLE
        if tensor.numel():
            waiting.append(tensor.reshape(-1))
            room -= tensor.numel()
    if waiting:
        yield torch.cat(waiting), 1.0


def _row(values: torch.Tensor, stands_for: float) -> torch.Tensor:
    row = count(values)
    if stands_for != 1.0:
        row[:-_EXTREMES].mul_(stands_for)
    return row


def count(values: torch.Tensor) -> torch.Tensor:
    """The row (see `layers.histograms.COLUMNS`) of up to 2**24 values of any shape, on their
    device."""
    layout = bits_of(values.dtype)
    values = values.detach().to(layout.floats)
    bits = values.abs().view(layout.whole)
    shift = layout.fraction - _PART_BITS
    nearest = ((LOWEST + layout.bias) << _PART_BITS) - 1
    sizes = (bits >> shift).sub_(nearest).clamp_(0, SIDE)
    lost = bits >= layout.infinity
    places = torch.where(values < 0, -sizes, sizes).add_(SIDE).masked_fill_(lost, NON_FINITE)
    finite, dtype = values.masked_fill(lost, 0.0), wide(values.device)
    others = [
        finite.sum(dtype=dtype),
        finite.to(dtype).square().sum(),
        finite.masked_fill_(lost, inf).amin().to(dtype),
        finite.masked_fill_(lost, -inf).amax().to(dtype),
    ]
    return torch.cat([counts_of(places, NON_FINITE + 1), torch.stack(others)])


def _together(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """The row of all of them."""
    if len(rows) == 1:
        return rows[0]
    table = torch.stack(list(rows))
    added, least, greatest = table[:, :-_EXTREMES].sum(0), table[:, -2], table[:, -1]
    return torch.cat([added, least.amin().view(1), greatest.amax().view(1)])
