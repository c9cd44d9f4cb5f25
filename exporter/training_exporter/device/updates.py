# SPDX-License-Identifier: Apache-2.0
"""What an optimiser step really did to the weights, from a sample of them before and after.

Formulas of optimisers would be exact for the few that have one, and read two more tensors as large
as the weights. The sample is right for each of them: it sees clipping, weight decay, a skipped
step and updates that rounding to bfloat16 has swallowed. Its memory and its time are bounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Final

import torch

from training_exporter.device.sampling import away_from_rows

_LARGE: Final = 4  # times its share: what is larger gives just its share

_Tensors = Sequence[torch.Tensor]


class ChangeSample:
    """Elements of some tensors, at even distances, before and after something changed them.

    A tensor of up to the elements that fall to it is taken whole, so that its norm is exact. Of the
    others every n-th element is taken: for values that are spread like a normal distribution,
    1,000 elements give the norm to 2 % (one standard deviation, sqrt(1 / 2k)).

    Args:
        tensors: of one dtype and on one device.
        most: elements to take of all tensors together.

    Attributes:
        order: the places in `tensors` in the order in which `change` has them.
        factors: in that order, the norm of a tensor over that of its sample.
    """

    def __init__(self, tensors: _Tensors, most: int) -> None:
        self._share = share = _share([tensor.numel() for tensor in tensors], most)
        large = [at for at, tensor in enumerate(tensors) if tensor.numel() >= _LARGE * share]
        known = set(large)
        self._large = len(large)
        self.order = large + [at for at in range(len(tensors)) if at not in known]
        ordered = [tensors[at] for at in self.order]
        self._steps = [_stride(tensor, share) for tensor in ordered]
        self._sizes = [
            share if at < self._large else -(-tensor.numel() // step)
            for at, (tensor, step) in enumerate(zip(ordered, self._steps, strict=True))
        ]
        self.factors = [
            sqrt(tensor.numel() / size) if size else 1.0
            for tensor, size in zip(ordered, self._sizes, strict=True)
        ]
        with torch.inference_mode(False):
            self._before = tensors[0].new_empty(sum(self._sizes), requires_grad=False)
            self._after = torch.empty_like(self._before)
        self._views: list[torch.Tensor] = []
        self._places: list[int] = []

    def take(self, tensors: _Tensors) -> None:
        """Keep the elements as they are now."""
        self._views = [
            tensors[at].as_strided((size,), (step,))
            for at, step, size in zip(self.order, self._steps, self._sizes, strict=True)
        ]
        self._places = [tensor.data_ptr() for tensor in tensors]
        torch.cat(self._views, out=self._before)

    def change(self, tensors: _Tensors) -> list[torch.Tensor] | None:
        """Norms of what changed in each tensor's sample, 1-dim; times its factor, that of the
        tensor.

        None if nothing was taken, or a tensor's memory is another one now.
        """
        views, self._views = self._views, []  # they would keep memory alive that others gave up
        if not views or self._places != [tensor.data_ptr() for tensor in tensors]:
            return None
        torch.cat(views, out=self._after)
        return self._norms(self._after.sub_(self._before))

    def _norms(self, changes: torch.Tensor) -> list[torch.Tensor]:
        """One norm along the rows for all large tensors, which have the same number of elements."""
        dtype = torch.float64 if changes.dtype is torch.float64 else torch.float32
        end = self._large * self._share
        norms = []
        if end:
            rows = changes[:end].view(self._large, self._share)
            norms.append(torch.linalg.vector_norm(rows, dim=1, dtype=dtype))
        if end < changes.numel() or self._large < len(self._sizes):
            parts = torch.split(changes[end:], self._sizes[self._large :])
            norms.append(torch.stack(list(torch._foreach_norm(parts, 2.0, dtype))))
        return norms


def _share(sizes: Sequence[int], most: int) -> int:
    """How many elements a tensor may give, so that all together give at most `most` (or one each):
    what small ones leave is for the large ones."""
    left = most
    for index, size in enumerate(sorted(sizes)):
        share = left // (len(sizes) - index)
        if size > share:
            return max(1, share)
        left -= size
    return max(sizes, default=1)


def _stride(tensor: torch.Tensor, share: int) -> int:
    """The distance between elements of the sample."""
    if tensor.numel() >= _LARGE * share:  # so that there are `share` of them
        return away_from_rows(tensor.numel() // share, tensor, -1)
    return away_from_rows(-(-tensor.numel() // share), tensor, 1)
