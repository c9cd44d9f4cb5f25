# SPDX-License-Identifier: Apache-2.0
"""What the labels of a batch are: which are masked, and between what the others lie."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import torch

from training_exporter.device.counting import values_here
from training_exporter.device.parcel import OpenBackend, Parcel, open_backend
from training_exporter.forensics.report import Labels

IGNORED: Final = -100
"""What torch's losses leave out: the default of `ignore_index`."""
MOST_LABELS: Final = 64

_NAMES: Final = frozenset({"labels", "label", "label_ids", "targets", "target"})


class LabelJob:
    """Numbers about label tensors, on their way to the host.

    Args:
        named: inputs with their names; those whose name ends in that of labels and that hold whole
            numbers are looked at, MOST_LABELS at most.
        classes: number of classes the model knows, None when unknown.
        open_backend: how to send from a device.

    Raises:
        TypeError: one lies on a device that cannot be read without waiting.
    """

    def __init__(
        self,
        named: Iterable[tuple[str, torch.Tensor]],
        classes: int | None,
        open_backend: OpenBackend = open_backend,
    ) -> None:
        self._classes = classes
        self._sent: list[tuple[str, int, Parcel]] = []
        for name, tensor in named:
            if len(self._sent) < MOST_LABELS and _are_labels(name, tensor):
                values = values_here(tensor)
                parcel = Parcel(_numbers(values), open_backend(values.device))
                self._sent.append((name, values.numel(), parcel))

    def arrived(self) -> bool:
        """Whether all numbers are on the host. Never waits."""
        return all(parcel.arrived() for _, _, parcel in self._sent)

    def wait(self) -> None:
        """Wait until they are."""
        for _, _, parcel in self._sent:
            parcel.wait()

    def labels(self) -> tuple[Labels, ...]:
        """What the labels are. Valid only once all has arrived."""
        return tuple(
            [self._one(name, elements, parcel.numbers()) for name, elements, parcel in self._sent]
        )

    def _one(self, name: str, elements: int, numbers: list[float]) -> Labels:
        ignored, least, most = map(int, numbers)
        if ignored == elements:
            return Labels(name, elements, ignored, classes=self._classes)
        return Labels(name, elements, ignored, least, most, self._classes)


def _are_labels(name: str, tensor: torch.Tensor) -> bool:
    if name.rpartition(".")[2].rpartition(", ")[2] not in _NAMES or tensor.is_meta:
        return False
    whole = not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype is torch.bool)
    return whole and tensor.numel() > 0


@torch.no_grad()
def _numbers(values: torch.Tensor) -> list[torch.Tensor]:
    """How many are ignored, and the least and the greatest of the others."""
    limits = torch.iinfo(values.dtype)
    if limits.min > IGNORED:  # it would wrap around to a label that is none of it
        return [values.new_zeros(()), values.min(), values.max()]
    ignored = values == IGNORED
    return [
        ignored.sum(),
        values.masked_fill(ignored, limits.max).min(),
        values.masked_fill(ignored, limits.min).max(),
    ]
