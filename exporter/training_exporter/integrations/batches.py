# SPDX-License-Identifier: Apache-2.0
"""What a batch says of its size, without waiting for the device."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from typing import Any


def tokens_in(inputs: Any) -> Any | None:
    """Tokens in a model's inputs: an int, or a 0-dim tensor where an attention mask tells the
    padding apart; None when the inputs are not text."""
    if not isinstance(inputs, Mapping):
        return None
    mask: Any = inputs.get("attention_mask")
    ids: Any = inputs.get("input_ids")
    if getattr(mask, "ndim", None) == 2:
        return mask.count_nonzero()  # not the sum: in a packed batch it may number the rows
    return ids.numel() if hasattr(ids, "numel") else None


def samples_in(inputs: Any) -> int | None:
    """Rows in a model's inputs: the first dimension of its first tensor, or the length of a list
    of rows."""
    if not isinstance(inputs, Mapping):
        return len(inputs) if isinstance(inputs, Sized) else None
    for value in inputs.values():
        if getattr(value, "ndim", 0) > 0:
            return int(value.shape[0])
    return None
