# SPDX-License-Identifier: Apache-2.0
"""The norm of the gradients as they are before clipping, without waiting for the device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from training_exporter.device.distributed import whole
from training_exporter.device.rows import read

_Groups = dict[tuple[torch.device, torch.dtype], list[torch.Tensor]]

# In half precision the norm of harmless values overflows: 1,000 elements of 3,000 give Inf.
_NORM_DTYPES = {torch.float16: torch.float32, torch.bfloat16: torch.float32}


@torch.no_grad()
def global_norm(parameters: torch.Tensor | Iterable[torch.Tensor]) -> torch.Tensor | None:
    """Global L2 norm of the gradients: a 0-dim tensor, float32 unless a gradient is float64.

    NaN and Inf gradients make the norm NaN or Inf. It lies on the device of the first gradient.

    None when there is no gradient, and None when one of them cannot be had in full without a
    collective or a sync, because a norm over the others would be a wrong one: a sharded DTensor
    (the norm of the local shard is not the global one) and, away from the CPU, a sparse gradient
    with repeated indices.

    Args:
        parameters: a parameter or parameters; an iterator is used up.
    """
    if isinstance(parameters, torch.Tensor):
        parameters = [parameters]
    groups: _Groups = {}
    for parameter in parameters:
        if parameter.grad is None:
            continue
        values = _values(parameter.grad)
        if values is None:
            return None
        groups.setdefault((values.device, values.dtype), []).append(values)
    return _combined([_norm(dtype, group) for (_, dtype), group in groups.items()])


def _values(gradient: torch.Tensor) -> torch.Tensor | None:
    """The elements of a gradient that are not zero, as a dense tensor."""
    local = whole(gradient)
    if local is None or not local.is_sparse:
        return local
    if local.is_coalesced():
        return local._values()
    return local.coalesce().values() if local.is_cpu else None  # elsewhere coalescing is a sync


def _norm(dtype: torch.dtype, gradients: list[torch.Tensor]) -> torch.Tensor:
    return _joined(torch._foreach_norm(gradients, 2.0, _NORM_DTYPES.get(dtype)))


def _combined(norms: list[torch.Tensor]) -> torch.Tensor | None:
    if len(norms) < 2:
        return norms[0] if norms else None
    dtype = torch.float64 if any(n.dtype is torch.float64 for n in norms) else torch.float32
    device = norms[0].device
    return _joined([_moved(norm, device, dtype) for norm in norms])


def _joined(norms: Sequence[torch.Tensor]) -> torch.Tensor:
    """The norm of the norms, which is the norm of all their elements."""
    total: torch.Tensor = torch.linalg.vector_norm(torch.stack(list(norms)))
    return total


def _moved(norm: torch.Tensor, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    if norm.is_cpu and device.type != "cpu":
        # A copy from ordinary host memory may wait; a fill takes its number along.
        return torch.full((), read(norm), dtype=dtype, device=device)
    return norm.to(device=device, dtype=dtype, non_blocking=True)
