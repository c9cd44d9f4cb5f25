# SPDX-License-Identifier: Apache-2.0
"""The memory that live tensors hold on a CUDA device, as the caching allocator counts it."""

from __future__ import annotations

import sys


def allocated_bytes(device_index: int | None = None) -> int | None:
    """Bytes held by live tensors, None when this process does not use CUDA.

    Reads counters on the host: it neither waits for the device nor initialises CUDA, and it does
    not even import torch. `torch.cuda.memory_allocated` gives the same number but flattens and
    sorts some 130 counters to find it.

    Args:
        device_index: the CUDA device; the current one when not given.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    counters = torch.cuda.memory_stats_as_nested_dict(device_index)  # empty without CUDA
    current = counters.get("allocated_bytes", {}).get("all", {}).get("current")
    return None if current is None else int(current)
