# SPDX-License-Identifier: Apache-2.0
"""A look at all gradients now and then: what every kind of it has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from typing import Any, Generic, Protocol, TypeVar
from weakref import WeakKeyDictionary, ref

import torch

from training_exporter.device.layer_index import Index
from training_exporter.device.rows import AsyncVectors, OpenVectors, open_vectors
from training_exporter.device.sheets import (
    Sheets,
    Values,
    arrived,
    capturing,
    release,
    send,
    take_rows,
    write_scale,
)

Found_co = TypeVar("Found_co", covariant=True)
Found = TypeVar("Found")


class Look(Protocol[Found_co]):
    """One look, from reading the gradients until all of it is on the host.

    Attributes:
        scale: the loss scale, in a list of its own, which `write_scale` fills.
    """

    scale: Values

    def read(self, index: Index, sheets: Sheets) -> None:
        """Read what is there into the sheets."""
        ...

    def finish(self) -> Found_co:
        """What was found. Valid only once the sheets are unpacked."""
        ...


class Survey(ABC, Generic[Found]):
    """Looks at a model's gradients on the steps it is asked to.

    On such a step, `before_clipping` when the gradients of all micro-batches are there; on every
    step `collect`. All from the training's thread. Nothing is changed, nobody waits, and no
    collective is run: of a sharded gradient the values that are here are read.

    Args:
        model: what has the `named_parameters()`. It is not kept alive.
        slots: looks that may be outstanding; beyond it they are dropped.
        open_vectors: makes the rows for a device, None for a device that can be read at once.

    Attributes:
        dropped: looks lost because the device was behind or a graph was being captured.
    """

    def __init__(
        self, model: Any, *, slots: int = 4, open_vectors: OpenVectors = open_vectors
    ) -> None:
        self.dropped = 0
        self._model = ref(model)
        self._slots = slots
        self._open_vectors = open_vectors
        # Its parameters would keep a model's memory, so it goes with the model.
        self._index: WeakKeyDictionary[Any, Index] = WeakKeyDictionary()
        self._vectors: dict[torch.device, AsyncVectors | None] = {}
        self._sent: deque[tuple[Look[Found], Sheets]] = deque()

    @abstractmethod
    def _prepare(self, index: Index) -> None:
        """The model is another one, or was changed: work out what its looks need."""

    @abstractmethod
    def _columns(self, device: torch.device) -> int:
        """How many numbers of one look come from a device, beside the loss scale."""

    @abstractmethod
    def _look(self) -> Look[Found]:
        """Another look begins."""

    @torch.no_grad()
    def before_clipping(self, loss_scale: object = None) -> None:
        """Read the gradients as they are now.

        Args:
            loss_scale: what the gradients are still multiplied by: a number, or a tensor with one
                element, which stays on its device.

        Raises:
            TypeError, ValueError: a loss scale that is neither.
        """
        model = self._model()
        if model is None:
            return
        index = None if capturing(self._vectors) else self._current_index(model)
        sheets = take_rows(self._vectors) if index is not None else None
        if index is None or sheets is None:
            self.dropped += 1
            return
        look = self._look()
        try:
            write_scale(loss_scale, look.scale, sheets)
            look.read(index, sheets)
        except BaseException:
            release(sheets)
            raise
        send(sheets)
        self._sent.append((look, sheets))

    def collect(self, *, wait: bool = False) -> list[Found]:
        """The looks that have arrived, in order.

        Args:
            wait: wait for all, which is for the end of training only.
        """
        if not self._sent or capturing(self._vectors):
            return []
        found = []
        while self._sent and arrived(self._sent[0][1], wait=wait):
            look, sheets = self._sent.popleft()
            for sheet in sheets.values():
                sheet.unpack()
            found.append(look.finish())
        return found

    def _current_index(self, model: Any) -> Index:
        index = self._index.get(model)
        if index is None or index.outdated():
            index = Index(model.named_parameters(), 0)
            self._prepare(index)
            self._vectors = {
                device: self._open_vectors(device, self._slots, self._columns(device) + 1)
                for device in dict.fromkeys(group.device for group in index.groups)
            }
            self._index[model] = index  # only now, as there may be no memory for the rows
        return index
