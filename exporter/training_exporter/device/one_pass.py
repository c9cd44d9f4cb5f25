# SPDX-License-Identifier: Apache-2.0
"""One pass over the layers: the norms of their parameters, gradients and changes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from training_exporter.device.layer_index import Group, Index
from training_exporter.device.sheets import Sheet, Sheets, Values, write_scale
from training_exporter.layers.readings import ParameterNorms


class OnePass:
    """One pass, from reading the gradients until all of it is on the host."""

    def __init__(self, step: int, index: Index, sheets: Sheets, *, full: bool) -> None:
        self.sheets = sheets
        self._step = step
        self._index = index
        self._full = full
        number = len(index.table.names)
        self._gradients: Values = [None] * number
        self._weights: Values = [None] * number
        self._changes: Values = [None] * number
        self._scale: Values = [1.0]
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


def _scale_up(values: Values, places: Sequence[int], factors: Sequence[float]) -> None:
    for place, factor in zip(places, factors, strict=True):
        value = values[place]
        if value is not None:
            values[place] = value * factor


def _divided(values: Values, scale: float | None) -> Values:
    """The values without the loss scale; none of them if that is not known, or 0."""
    if scale == 1.0:
        return values
    return [None if value is None or not scale else value / scale for value in values]
