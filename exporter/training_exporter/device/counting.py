# SPDX-License-Identifier: Apache-2.0
"""How many NaN and Inf tensors hold: counted on their device, without waiting for it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import torch

from training_exporter.device.parcel import OpenBackend, Parcel, open_backend
from training_exporter.forensics.report import Inspection, TensorFinding, worst_of

CHUNK: Final = 1 << 24
"""Elements that are looked at together. That takes some tens of MB for a while, not a copy of the
largest weight, which a full device may not have room for."""

_NARROWEST: Final = 2  # bytes; 8-bit floats know no isnan


class _Counted(NamedTuple):
    name: str
    shape: tuple[int, ...]
    dtype: str


class CountJob:
    """Counts of NaN and Inf in some tensors, on their way to the host.

    Tensors that can hold neither, whole numbers say, count as checked and cost nothing; those
    without data (meta tensors) are left out. Of a tensor that is spread over processes the part
    that this one holds is looked at. Some work on the devices is begun for each tensor, and one
    copy for each device.

    Args:
        named: tensors with their names.
        open_backend: how to send from a device.

    Raises:
        TypeError: a tensor lies on a device that cannot be read without waiting.
    """

    def __init__(
        self,
        named: Iterable[tuple[str, torch.Tensor]],
        *,
        open_backend: OpenBackend = open_backend,
    ) -> None:
        self._checked = 0
        self._parcels: list[tuple[list[_Counted], Parcel]] = []
        by_device: dict[torch.device, tuple[list[_Counted], list[torch.Tensor]]] = {}
        for name, tensor in named:
            values = values_here(tensor)
            if values.is_meta:
                continue
            self._checked += 1
            if not can_be_non_finite(values):
                continue
            counted, numbers = by_device.setdefault(values.device, ([], []))
            counted.append(_Counted(name, tuple(tensor.shape), _name_of(tensor.dtype)))
            numbers.extend(count_non_finite(values))
        for device, (counted, numbers) in by_device.items():
            self._parcels.append((counted, Parcel(numbers, open_backend(device))))

    def arrived(self) -> bool:
        """Whether all counts are on the host. Never waits."""
        return all(parcel.arrived() for _, parcel in self._parcels)

    def wait(self) -> None:
        """Wait until they are."""
        for _, parcel in self._parcels:
            parcel.wait()

    def findings(self) -> list[TensorFinding]:
        """The tensors that are not finite everywhere. Valid only once all has arrived."""
        found = []
        for counted, parcel in self._parcels:
            numbers = parcel.numbers()
            for one, nan, inf in zip(counted, numbers[::2], numbers[1::2], strict=True):
                if nan or inf:
                    found.append(TensorFinding(*one, int(nan), int(inf)))
        return found

    def inspection(self, step: int, *, before_update: bool = False) -> Inspection:
        """What was found, as the inspection of a step. Valid only once all has arrived."""
        found = self.findings()
        return Inspection(step, self._checked, len(found), worst_of(found), before_update)


@torch.no_grad()
def count_non_finite(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Number of NaN and of infinite elements, as 0-dim tensors on the device of `values`."""
    nan = torch.zeros((), dtype=torch.int64, device=values.device)
    inf = torch.zeros_like(nan)
    if values.is_cpu and _is_finite(values):
        return nan, inf
    for chunk in _chunks(values):
        if chunk.element_size() < _NARROWEST:
            chunk = chunk.to(torch.float32)
        nan += torch.count_nonzero(torch.isnan(chunk))
        inf += _infinite(chunk)
    return nan, inf


def _infinite(chunk: torch.Tensor) -> torch.Tensor:
    if chunk.is_complex():
        return torch.count_nonzero(torch.isinf(chunk))
    # isinf would take the absolute values first, which is a copy of the chunk in its own type.
    return torch.count_nonzero(chunk == torch.inf) + torch.count_nonzero(chunk == -torch.inf)


def _is_finite(values: torch.Tensor) -> bool:
    """Whether a CPU tensor is surely finite: a sum that is not may have overflowed only."""
    if values.element_size() < _NARROWEST or values.is_complex():
        return False
    total: Any = values.sum().tolist()
    return bool(total - total == 0.0)


def _chunks(values: torch.Tensor) -> Iterable[torch.Tensor]:
    """The tensor in parts of about CHUNK elements, none of them a copy."""
    if values.numel() <= CHUNK:
        return (values,)
    longest = max(range(values.dim()), key=lambda dim: values.shape[dim])
    size = max(1, CHUNK * values.shape[longest] // values.numel())
    length = values.shape[longest]
    starts = range(0, length, size)
    return [values.narrow(longest, at, min(size, length - at)) for at in starts]


def values_here(tensor: torch.Tensor) -> torch.Tensor:
    """The elements of a tensor that this process holds, as a dense tensor; zeros of a sparse one
    are left out."""
    with torch.no_grad():
        local: Any = tensor.detach()
        if hasattr(local, "to_local"):  # a DTensor: its own shard, without communicating
            local = local.to_local()
        if local.layout is torch.sparse_coo:
            local = local._values()
    values: torch.Tensor = local
    return values


def can_be_non_finite(values: torch.Tensor) -> bool:
    """Whether its type knows NaN or Inf at all, and it has elements."""
    return (values.is_floating_point() or values.is_complex()) and values.numel() > 0


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
