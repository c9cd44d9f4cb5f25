# SPDX-License-Identifier: Apache-2.0
"""The norms of each parameter, its gradient and its change, without waiting for the device.

One foreach pass per device and dtype, one packed row and one copy per device. What is found comes
to the host some steps later, and `layers.readings` makes layers of it there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any, Final
from weakref import WeakKeyDictionary, ref

import torch

from training_exporter.device.layer_index import Index
from training_exporter.device.one_pass import OnePass
from training_exporter.device.rows import AsyncVectors, OpenVectors, open_vectors
from training_exporter.device.sheets import arrived, capturing, release, send, take_rows
from training_exporter.layers.readings import ParameterNorms

SAMPLE: Final = 2**18
"""Elements per device that are compared before and after a step: 2 MiB in float32, kept."""

FULL_EVERY: Final = 5
"""Passes from one that reads weights and changes to the next. They move slowly, and cost more than
the gradients."""


class LayerPass:
    """Reads the norms of a model's trained parameters on the steps it is asked to.

    On such a step, `before_clipping` when the gradients of all micro-batches are there, then, if
    changes are wanted, `after_step` when the optimiser has done its step; and on every step
    `collect`. All from the training's thread. Nothing is changed, nobody waits, and no collective
    is run: of a sharded parameter the norms are those of the shard that is here. A frozen parameter
    is left out, a tied one is there once.

    Gradients are read in each pass, weights and changes in the first and every n-th after it; in
    between they are given as they were.

    Args:
        model: what has the `named_parameters()`. It is not kept alive.
        full_every: passes from one that reads weights and changes to the next.
        sample: how many elements per device to compare before and after a step; 0 for none.
        slots: passes that may be outstanding; beyond it they are dropped.
        open_vectors: makes the rows for a device, None for a device that can be read at once.

    Attributes:
        dropped: passes lost because the device was behind or a graph was being captured.
    """

    def __init__(
        self,
        model: Any,
        *,
        full_every: int = FULL_EVERY,
        sample: int = SAMPLE,
        slots: int = 8,
        open_vectors: OpenVectors = open_vectors,
    ) -> None:
        self.dropped = 0
        self._model = ref(model)
        self._full_every = full_every
        self._until_full = 0
        self._latest: ParameterNorms | None = None
        self._sample = sample
        self._slots = slots
        self._open_vectors = open_vectors
        # Its parameters would keep a model's memory, so it goes with the model.
        self._index: WeakKeyDictionary[Any, Index] = WeakKeyDictionary()
        self._vectors: dict[torch.device, AsyncVectors | None] = {}
        self._open: OnePass | None = None
        self._sent: deque[OnePass] = deque()

    @torch.no_grad()
    def before_clipping(self, step: int, loss_scale: object = None) -> None:
        """Read the gradients and weights as they are now.

        Args:
            step: number of the optimiser step.
            loss_scale: what the gradients are still multiplied by: a number, or a tensor with one
                element, which stays on its device.

        Raises:
            TypeError, ValueError: a loss scale that is neither.
        """
        model = self._model()
        if model is None:
            return
        if capturing(self._vectors):
            self.dropped += 1
            return
        self._send()
        index = self._current_index(model)
        sheets = take_rows(self._vectors)
        if sheets is None:
            self.dropped += 1
            return
        started = OnePass(step, index, sheets, full=not self._until_full)
        try:
            started.read(loss_scale)
        except BaseException:
            release(sheets)
            raise
        self._open = started
        self._until_full = (self._until_full or self._full_every) - 1

    @torch.no_grad()
    def after_step(self) -> None:
        """Read what the optimiser has done since `before_clipping`; nothing if that was not due."""
        if self._open is not None and not capturing(self._vectors):
            self._open.read_changes()

    def collect(self, *, wait: bool = False) -> list[ParameterNorms]:
        """End the pass of this step, and give those that have arrived, in order.

        Args:
            wait: wait for all, which is for the end of training only.
        """
        if (self._open is None and not self._sent) or capturing(self._vectors):
            return []
        self._send()
        found = []
        while self._sent and arrived(self._sent[0].sheets, wait=wait):
            self._latest = self._sent.popleft().finish(self._latest)
            found.append(self._latest)
        return found

    def _current_index(self, model: Any) -> Index:
        index = self._index.get(model)
        if index is None or index.outdated():
            index = Index(model.named_parameters(), self._sample)
            self._vectors = {
                device: self._open_vectors(device, self._slots, 3 * index.width(device) + 1)
                for device in dict.fromkeys(group.device for group in index.groups)
            }
            self._until_full = 0
            self._index[model] = index  # only now, as there may be no memory for it
        return index

    def _send(self) -> None:
        sent, self._open = self._open, None
        if sent is not None:
            self._sent.append(sent)
            send(sent.sheets)


def reason_against(
    named_parameters: Iterable[tuple[str, torch.Tensor]], optimizer: object = None
) -> str:
    """Why a pass would find no gradients in this training, in words for a person; "" if it would.

    Args:
        named_parameters: of the model as it is trained.
        optimizer: what does the steps, if known.
    """
    parameters = [parameter for _, parameter in named_parameters]
    deepspeed = "DeepSpeed keeps the gradients to itself, so there are none to read per layer"
    if (
        type(optimizer).__module__.startswith("deepspeed")
        or "DeepSpeed" in type(optimizer).__name__
    ):
        return deepspeed
    # ZeRO 3 marks parameters by the first, ZeRO 1 and 2 and its bfloat16 optimiser by the second.
    if any(hasattr(p, "ds_id") or hasattr(p, "_hp_mapping") for p in parameters):
        return deepspeed
    return "" if any(p.requires_grad for p in parameters) else "no parameter is trained"
