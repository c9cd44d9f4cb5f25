# SPDX-License-Identifier: Apache-2.0
"""Which parameters of a model are read in a layer pass, and what of them is on this process."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Any, Final

import torch

from training_exporter.device.sampling import sampleable
from training_exporter.device.updates import ChangeSample
from training_exporter.layers.readings import ParameterTable

_FULLY_SHARDED: Final = ("_fsdp_wrapped_module", "_flat_param")
"""In the names of parameters that FSDP 1 has sharded, which are ordinary tensors to look at."""


class Group:
    """The trained parameters of one device and dtype, and their places in the table."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        # In half precision the norm of harmless values overflows: 1,000 elements of 3,000 are Inf.
        wide = dtype in {torch.float64, torch.complex128}
        self.norm_dtype = torch.float64 if wide else torch.float32
        self.places: list[int] = []
        self.sample: ChangeSample | None = None
        self.sampled_places: list[int] = []
        self._dtype = dtype
        self._ordinary = not dtype.is_complex  # and nothing is spread, so all is as it is used
        self._parameters: list[torch.Tensor] = []
        self._sampled: list[torch.Tensor] = []

    def add(self, place: int, parameter: torch.Tensor) -> None:
        self._ordinary = self._ordinary and not hasattr(parameter, "to_local")
        self.places.append(place)
        self._parameters.append(parameter)

    def prepare_sample(self, most: int) -> None:
        """Choose up to so many elements to compare before and after a step."""
        for place, parameter in zip(self.places, self._parameters, strict=True):
            if sampleable(self._real(local(parameter))):
                self.sampled_places.append(place)
                self._sampled.append(parameter)
        if self._sampled:
            self.sample = ChangeSample(self.sampled_weights(), most)
            self.sampled_places = [self.sampled_places[at] for at in self.sample.order]

    def moved(self) -> bool:
        """Whether the model went to another device or dtype since."""
        first = self._parameters[0]
        return first.device != self.device or first.dtype is not self._dtype

    def weights(self) -> list[torch.Tensor]:
        return self._here(self._parameters)

    def sampled_weights(self) -> list[torch.Tensor]:
        return self._here(self._sampled)

    def gradients(self, unread: set[int]) -> tuple[list[int], list[torch.Tensor]]:
        """The gradients there are, with their places; those that cannot be read go to `unread`."""
        places, gradients = [], []
        for place, parameter in zip(self.places, self._parameters, strict=True):
            gradient = parameter.grad
            if gradient is None or not parameter.requires_grad:
                continue
            if type(gradient) is not torch.Tensor or gradient.layout is not torch.strided:
                gradient = _elements(gradient)
                if gradient is None:
                    unread.add(place)
                    continue
            places.append(place)
            gradients.append(self._real(gradient))
        return places, gradients

    def _here(self, parameters: list[torch.Tensor]) -> list[torch.Tensor]:
        if self._ordinary:
            return parameters
        return [self._real(local(parameter)) for parameter in parameters]

    def _real(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.view_as_real(tensor) if self._dtype.is_complex else tensor


class Index:
    """What there is to read, worked out once for as long as the same parameters are trained.

    Args:
        named_parameters: of the model; frozen ones are remembered only to see them thawed.
        sample: elements per device to compare before and after a step.
    """

    def __init__(self, named_parameters: Iterable[tuple[str, torch.Tensor]], sample: int) -> None:
        named = list(named_parameters)
        trained = [(name, parameter) for name, parameter in named if parameter.requires_grad]
        self.table = _table(trained)
        self.groups = _grouped([parameter for _, parameter in trained])
        self._frozen = [parameter for _, parameter in named if not parameter.requires_grad]
        if sample:
            for group in self.groups:
                group.prepare_sample(max(1, sample * len(group.places) // self.width(group.device)))

    def width(self, device: torch.device) -> int:
        """How many parameters are on a device."""
        return sum(len(group.places) for group in self.groups if group.device == device)

    def outdated(self) -> bool:
        """Whether it has to be made anew: a parameter was thawed, or the model has moved."""
        return any(parameter.requires_grad for parameter in self._frozen) or any(
            group.moved() for group in self.groups
        )


def local(tensor: Any) -> torch.Tensor:
    """What this process holds of a tensor. Under `no_grad`, where DTensors just hand it out."""
    part: torch.Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part


def _elements(gradient: Any) -> torch.Tensor | None:
    """The elements here that are not zero as a dense tensor, None if they cannot be had."""
    if any(placement.is_partial() for placement in getattr(gradient, "placements", ())):
        return None  # only the sum over all processes is the gradient
    part = local(gradient)
    if part.layout is torch.sparse_coo:
        if part.is_coalesced():
            return part._values()
        return part.coalesce().values() if part.is_cpu else None  # elsewhere it is a sync
    return part if part.layout is torch.strided else None


def _grouped(parameters: Iterable[torch.Tensor]) -> list[Group]:
    groups: dict[tuple[torch.device, torch.dtype], Group] = {}
    for place, parameter in enumerate(parameters):
        key = (parameter.device, parameter.dtype)
        if key not in groups:
            groups[key] = Group(*key)
        groups[key].add(place, parameter)
    return list(groups.values())


def _table(named: list[tuple[str, torch.Tensor]]) -> ParameterTable:
    meshes = [getattr(parameter, "device_mesh", None) for _, parameter in named]
    largest = max((mesh.size() for mesh in meshes if mesh is not None), default=1)
    return ParameterTable(
        tuple(name for name, _ in named),
        tuple(_is_shard(name, parameter) for name, parameter in named),
        tuple(_copies(parameter, largest) for _, parameter in named),
    )


def _is_shard(name: str, parameter: Any) -> bool:
    if any(part in name for part in _FULLY_SHARDED):
        return True
    return any(not placed.is_replicate() for placed in getattr(parameter, "placements", ()))


def _copies(parameter: Any, largest: int) -> int:
    """How many processes hold the same elements: of an ordinary tensor, as many as the others are
    spread over."""
    mesh = getattr(parameter, "device_mesh", None)
    if mesh is None:
        return largest
    return prod(
        mesh.size(dimension)
        for dimension, placed in enumerate(parameter.placements)
        if placed.is_replicate()
    )
