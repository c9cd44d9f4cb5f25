# SPDX-License-Identifier: Apache-2.0
"""Counts what would make the host wait for the device, on a machine without one."""

from __future__ import annotations

import os
import sys
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_SYNCING = frozenset(
    {
        "_local_scalar_dense",  # item(), bool(), float(), int(), format()
        "_unique2",
        "allclose",
        "equal",
        "is_nonzero",
        "item",
        "masked_select",
        "nonzero",
        "repeat_interleave",
        "unique_consecutive",
        "unique_dim",
    }
)
_MASKABLE = frozenset({"index", "index_put", "index_put_", "_index_put_impl_"})
_NOT_THE_CALLER = (os.path.dirname(torch.__file__) + os.sep, __file__)


class Sync(NamedTuple):
    """One operation that waits, and the line outside torch that asked for it."""

    operation: str
    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.operation} at {self.file}:{self.line}"


class SyncAudit(TorchDispatchMode):
    """`with SyncAudit() as audit: ...`, then look at `audit.syncs`.

    It sees operations that need a value on the host whatever device they run on. It cannot see
    what is no operation on the CPU: `tolist()`, `cpu()` and `numpy()` of a device tensor. Those are
    for the tests on a GPU, which run under `torch.cuda.set_sync_debug_mode("error")`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.syncs: list[Sync] = []

    def in_file(self, part: str) -> list[Sync]:
        """The syncs asked for by files whose path contains `part`."""
        return [sync for sync in self.syncs if part in sync.file]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name in _SYNCING or (name in _MASKABLE and _has_mask(args[1])):
            self.syncs.append(Sync(name, *_caller(sys._getframe(1))))
        return func(*args, **(kwargs or {}))


def _has_mask(indices: Any) -> bool:
    return any(index is not None and index.dtype is torch.bool for index in indices)


def _caller(frame: FrameType | None) -> tuple[str, int]:
    while frame is not None and frame.f_code.co_filename.startswith(_NOT_THE_CALLER):
        frame = frame.f_back
    return (frame.f_code.co_filename, frame.f_lineno) if frame else ("", 0)
