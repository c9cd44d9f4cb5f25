# SPDX-License-Identifier: Apache-2.0
"""From one norm per parameter to one per layer. Plain Python: the thread that renders may do it."""

from __future__ import annotations

from collections.abc import Sequence
from math import hypot, isfinite, sqrt
from typing import NamedTuple

from training_exporter.layers.names import AUTO, LayerNames, name_layers

Norms = Sequence["float | None"]


class ParameterTable(NamedTuple):
    """The parameters that are trained, in the model's order.

    Attributes:
        names: as `named_parameters()` gives them.
        shards: whether this process holds only a part of the parameter.
        copies: how many processes hold the same elements of a parameter that is spread, or of one
            that is whole in a model in which others are spread; else 1.
    """

    names: tuple[str, ...]
    shards: tuple[bool, ...]
    copies: tuple[int, ...]


class ParameterNorms(NamedTuple):
    """What one pass over the parameters found: L2 norms, by the parameter's place in the table.

    Of a shard it is the norm of the elements that are here. None is a value that there is not.

    Attributes:
        step: the optimiser step before whose clipping the gradients were read.
        parameters: which parameters these are; the same object as long as they are the same.
        gradients: before clipping and with the loss scale taken out; None where no gradient came.
        weights: before the step `weights_step`.
        changes: of what that step did to the weights; None where that was not watched.
        weights_step: this step, or an earlier one in a pass that did not read the weights.
        unread: parameters that have a gradient whose norm could not be had without waiting.
    """

    step: int
    parameters: ParameterTable
    gradients: Norms
    weights: Norms
    changes: Norms
    weights_step: int
    unread: frozenset[int] = frozenset()


class LayerReading(NamedTuple):
    """One pass by layer. All sequences are parallel to `layers`; None is a value there is not.

    Attributes:
        step: the optimiser step.
        weights_step: the step of param_norm and update_ratio: this one or an earlier one.
        layers: names, in the model's order; the last may be catalog.OTHER.
        shards: whether this process holds only a part of the layer. Its norms are then those of the
            part, and the squares over all processes add up to the square of the layer's norm.
        grad_norm: L2 norm of the gradient before clipping, without the loss scale.
        param_norm: L2 norm of the weights before the step `weights_step`.
        update_ratio: norm of the step's change to the weights over the norm of the weights.
        grad_to_param_ratio: norm of the gradient over the norm of the weights.
        non_finite: how many parameters of the layer have a gradient with a NaN or an Inf, or one
            whose sum of squares is beyond float32 (elements beyond 1.8e19).
        folded: how many layers are together in catalog.OTHER.
    """

    step: int
    weights_step: int
    layers: tuple[str, ...]
    shards: tuple[bool, ...]
    grad_norm: tuple[float | None, ...]
    param_norm: tuple[float | None, ...]
    update_ratio: tuple[float | None, ...]
    grad_to_param_ratio: tuple[float | None, ...]
    non_finite: tuple[int, ...]
    folded: int

    def worst(self) -> str | None:
        """The layer with the largest finite gradient norm, None where there is none."""
        known = [
            (norm, name)
            for norm, name in zip(self.grad_norm, self.layers, strict=True)
            if norm is not None and isfinite(norm)
        ]
        return max(known, key=lambda pair: pair[0])[1] if known else None

    def first_non_finite(self) -> str | None:
        """Where the backward pass met its first NaN or Inf, as `first_non_finite` has it."""
        return first_non_finite(self.layers, [count > 0 for count in self.non_finite])


class LayerReader:
    """Groups the norms of parameters to layers, and works the layers out only when they change.

    Args:
        grouping, most: as `name_layers` has them.

    Raises:
        ValueError: as `name_layers`, at once.
    """

    def __init__(self, *, grouping: str = AUTO, most: int = 64) -> None:
        name_layers((), grouping=grouping, most=most)
        self._grouping = grouping
        self._most = most
        self._table: ParameterTable | None = None
        self._names = LayerNames((), (), 0)
        self._members: list[list[int]] = []
        self._parts: tuple[bool, ...] = ()

    def read(self, norms: ParameterNorms) -> LayerReading:
        """The layers of one pass."""
        if norms.parameters is not self._table:
            self._regroup(norms.parameters)
        gradients = self._combined(norms.parameters, norms.gradients)
        weights = self._combined(norms.parameters, norms.weights)
        changes = self._combined(norms.parameters, norms.changes, whole=True)
        if norms.unread:
            spoilt = {self._names.of_parameter[place] for place in norms.unread}
            gradients = [None if at in spoilt else norm for at, norm in enumerate(gradients)]
        return LayerReading(
            norms.step, norms.weights_step, self._names.layers, self._parts, tuple(gradients),
            tuple(weights), _ratios(changes, weights), _ratios(gradients, weights),
            self._non_finite(norms.gradients, gradients), self._names.folded,
        )  # fmt: skip

    def _regroup(self, table: ParameterTable) -> None:
        self._names = name_layers(table.names, grouping=self._grouping, most=self._most)
        self._members = [[] for _ in self._names.layers]
        for place, layer in enumerate(self._names.of_parameter):
            self._members[layer].append(place)
        self._parts = tuple(
            any(table.shards[place] for place in members) for members in self._members
        )
        self._table = table

    def _combined(
        self, table: ParameterTable, norms: Norms, *, whole: bool = False
    ) -> list[float | None]:
        """The norm of each layer: the root of the sum of the squares of its parameters' norms."""
        if any(self._parts):
            norms = self._shares(table, norms)
        return [_norm([norms[place] for place in members], whole) for members in self._members]

    def _shares(self, table: ParameterTable, norms: Norms) -> Norms:
        """In a layer of which others hold parts too, what is held more than once counts once."""
        return [
            norm if norm is None or copies == 1 or not self._parts[layer] else norm / sqrt(copies)
            for norm, copies, layer in zip(
                norms, table.copies, self._names.of_parameter, strict=True
            )
        ]

    def _non_finite(self, norms: Norms, layers: Sequence[float | None]) -> tuple[int, ...]:
        counts = [0] * len(self._members)
        for layer, members in enumerate(self._members):
            norm = layers[layer]
            if norm is None or not isfinite(norm):
                counts[layer] = sum(not isfinite(norms[place] or 0.0) for place in members)
        return tuple(counts)


def first_non_finite(layers: Sequence[str], flags: Sequence[bool]) -> str | None:
    """Of the layers with a non-finite gradient, the one where the backward pass came by first.

    The backward pass goes from the loss to the input and takes a NaN along to every layer after
    it, so the first one is the last in the model's order. Where it was born in a layer's own
    backward, that layer's weights may still have got a finite gradient: look there and at the next
    one towards the loss. When the last layer of all is named, the loss itself was non-finite
    already, or that layer did it. The model's order is the one of `named_parameters()`, which for
    branches side by side (CLIP) and for weights used twice says little.

    Args:
        layers: names in the model's order.
        flags: for each, whether its gradient is non-finite.
    """
    return next((name for name, bad in zip(layers[::-1], flags[::-1], strict=True) if bad), None)


def _norm(norms: Norms, whole: bool) -> float | None:
    known = [norm for norm in norms if norm is not None]
    if not known or (whole and len(known) < len(norms)):
        return None
    return hypot(*known)


def _ratios(
    over: Sequence[float | None], under: Sequence[float | None]
) -> tuple[float | None, ...]:
    return tuple(None if a is None or not b else a / b for a, b in zip(over, under, strict=True))
