# SPDX-License-Identifier: Apache-2.0
"""What one process may know of a tensor that is spread over many, without communicating."""

from __future__ import annotations

from typing import Any

import torch


def whole(tensor: torch.Tensor) -> torch.Tensor | None:
    """The tensor as this process holds it, or None when it holds only a part.

    A replicated DTensor is unwrapped. A sharded or partial one would need a collective to become
    the real value, and a collective on our account could deadlock the run (a rank that logs less
    often than the others never joins it), so there is no value here.
    """
    if type(tensor) is torch.Tensor or not hasattr(tensor, "to_local"):
        return tensor
    placements: Any = getattr(tensor, "placements", ())
    if not all(placement.is_replicate() for placement in placements):
        return None
    with torch.no_grad():
        local: torch.Tensor = tensor.to_local()
    return local
