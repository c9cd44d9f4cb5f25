# SPDX-License-Identifier: Apache-2.0
"""What there is to see of the layers: one thread puts it here, those that show it read it."""

from __future__ import annotations

from collections.abc import Mapping
from threading import Lock
from types import MappingProxyType
from typing import NamedTuple

from training_exporter.layers.names import AUTO
from training_exporter.layers.readings import LayerReader, LayerReading, ParameterNorms

_NONE_SO_FAR: Mapping[str, int] = MappingProxyType({})


class FirstNonFinite(NamedTuple):
    """Where gradients that were finite stopped being so.

    Attributes:
        layer: the layer where the backward pass met the first NaN or Inf.
        step: the optimiser step of the pass that found it.
    """

    layer: str
    step: int


class LayerState(NamedTuple):
    """What the last passes found. Whoever is handed one does not change it.

    Attributes:
        norms: the last pass, not yet grouped to layers.
        non_finite: passes that met a non-finite gradient, by layer; a layer without is left out.
        first: the last time that gradients stopped being finite, None if they never did or where
            they did so is not known.
    """

    norms: ParameterNorms
    non_finite: Mapping[str, int] = _NONE_SO_FAR
    first: FirstNonFinite | None = None


class LayerView(NamedTuple):
    """The same by layer.

    Attributes:
        reading: the last pass.
        non_finite: of each layer in `reading.layers`, the passes that met a non-finite gradient.
        first: as LayerState has it.
    """

    reading: LayerReading
    non_finite: tuple[int, ...]
    first: FirstNonFinite | None

    def largest(self, most: int) -> list[int]:
        """Places in `reading.layers` of the layers with the largest finite gradient norms, the
        largest first."""
        norms = self.reading.grad_norm
        known = [at for at, norm in enumerate(norms) if norm is not None and norm < float("inf")]
        return sorted(known, key=lambda at: -(norms[at] or 0.0))[:most]


class LayerBoard:
    """Where the last pass hangs. Who looks groups it to layers, once for all who look.

    Args:
        grouping, most: as `name_layers` has them.

    Attributes:
        state: the last pass, None before the first; replaced by the training's thread, which never
            takes the lock.
    """

    def __init__(self, grouping: str = AUTO, most: int = 64) -> None:
        self.state: LayerState | None = None
        self._reader = LayerReader(grouping=grouping, most=most)
        self._lock = Lock()
        self._seen: LayerState | None = None
        self._view: LayerView | None = None

    def view(self) -> LayerView | None:
        """The last pass by layer, None before the first."""
        state = self.state
        if state is None:
            return None
        with self._lock:
            if state is not self._seen:
                self._view, self._seen = self._grouped(state), state
            return self._view

    def _grouped(self, state: LayerState) -> LayerView:
        reading = self._reader.read(state.norms)
        totals = tuple([state.non_finite.get(layer, 0) for layer in reading.layers])
        return LayerView(reading, totals, state.first)
