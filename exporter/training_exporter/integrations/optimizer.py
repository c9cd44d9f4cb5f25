# SPDX-License-Identifier: Apache-2.0
"""What optimisers, schedulers and gradient scalers say, without waiting for the device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def learning_rates(source: Any) -> Iterator[tuple[str, Any]]:
    """Learning rates by group, as numbers or tensors, from whatever a loop has at hand: a rate,
    rates by group, an optimiser or a scheduler."""
    if isinstance(source, Mapping):
        yield from ((str(group), rate) for group, rate in source.items())
    elif hasattr(source, "param_groups"):
        for group, rate in zip(_group_names(source), source.param_groups, strict=True):
            yield group, rate.get("lr")
    elif hasattr(source, "get_last_lr"):
        rates = source.get_last_lr()
        names = _group_names(getattr(source, "optimizer", None))
        yield from zip(names if len(names) == len(rates) else _indices(rates), rates, strict=True)
    elif isinstance(source, list | tuple):
        yield from zip(_indices(source), source, strict=True)
    else:
        yield "0", source


def loss_scale(source: Any) -> Any:
    """A loss scale, or that of a gradient scaler: its `get_scale` would wait for the device."""
    return getattr(source, "_scale", None) if hasattr(source, "get_scale") else source


def unscaled(norm: Any, scale: Any) -> Any:
    """The norm of gradients that still carry a loss scale, as if they did not. Either may be
    None."""
    return norm if norm is None or scale is None else norm / scale


def _group_names(optimizer: Any) -> list[str]:
    """Each group's own name where it has one, else its index."""
    groups = getattr(optimizer, "param_groups", ())
    return [str(group.get("name", index)) for index, group in enumerate(groups)]


def _indices(rates: Sequence[object]) -> list[str]:
    return [str(index) for index in range(len(rates))]
