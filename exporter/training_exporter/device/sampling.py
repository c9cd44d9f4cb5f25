# SPDX-License-Identifier: Apache-2.0
"""Elements of a tensor at even distances, without a copy of the others."""

from __future__ import annotations

from math import gcd

import torch


def sampleable(tensor: torch.Tensor) -> bool:
    """Whether the elements lie side by side in memory, in whatever order."""
    if not tensor.dtype.is_floating_point or tensor.layout is not torch.strided:
        return False
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return tensor.numel() == 0
        expected *= size
    return True


def away_from_rows(step: int, tensor: torch.Tensor, towards: int) -> int:
    """The next distance, up or down, that has no factor in common with a row's length: else a
    sample would keep to some of the columns."""
    while step > 1 and gcd(step, tensor.shape[-1]) > 1:
        step += towards
    return max(1, step)


def evenly(tensor: torch.Tensor, most: int) -> torch.Tensor:
    """At most so many elements of a tensor, 1-dim where they are not all."""
    if tensor.numel() <= most:
        return tensor
    step = away_from_rows(-(-tensor.numel() // most), tensor, 1)
    if sampleable(tensor):
        return tensor.as_strided((-(-tensor.numel() // step),), (step,))
    # To flatten it would copy all of it.
    return tensor.take(torch.arange(0, tensor.numel(), step, device=tensor.device))
