# SPDX-License-Identifier: Apache-2.0
"""How much work the steps of a transformer are, and how fast its GPU could do it at best."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from training_exporter.flops import ModelSize, training_flops
from training_exporter.gpu.peaks import peak_flops
from training_exporter.integrations.batches import tokens_in
from training_exporter.integrations.model_size import positions_in, size_of
from training_exporter.integrations.trainer_settings import precision_of


class Effort:
    """Adds up positions and FLOPs of the batches of a step, from shapes alone.

    A sum that misses a batch is unknown: so is one over batches of which some are no text.
    """

    def __init__(self) -> None:
        self._size: ModelSize | None = None
        self._positions: float | None = 0.0
        self._flops: float | None = 0.0

    def measure(self, model: object) -> None:
        """Find the size of a model. It walks over all parameters: not for each step.

        What was found before stays when nothing can be found, as once the model is wrapped.
        """
        size = size_of(model) if isinstance(model, nn.Module) else None
        self._size = size or self._size

    def add(self, inputs: Any) -> Any | None:
        """Count a batch, before the step that may take things out of it.

        Returns:
            its tokens, as `tokens_in` would: an int or a 0-dim tensor, None when it is no text.
        """
        positions, flops, size = self._positions, self._flops, self._size
        self._positions = self._flops = None
        batch = positions_in(inputs)
        if batch is None:
            return tokens_in(inputs)
        if positions is not None and batch.real is not None:
            self._positions = positions + batch.all
        if flops is not None and size is not None:
            self._flops = flops + training_flops(size, batch.all, batch.length)
        return batch.all if batch.real is None else batch.real

    def take(self) -> dict[str, float | None]:
        """The StepSignals fields of the step that ends, and begin with the next one."""
        fields = {"positions": self._positions or None, "flops": self._flops or None}
        self.discard()
        return fields

    def discard(self) -> None:
        """Forget what was counted since the last step."""
        self._positions = self._flops = 0.0


def peak_of(model: object, args: Any) -> float | None:
    """What the GPU of a Trainer's model can do in FLOP/s, at the precision it trains with.

    None without a GPU, for one that is not in the table, and for a model on several of them.
    """
    if not isinstance(model, nn.Module) or args.n_gpu > 1:
        return None
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) != 1 or (device := devices.pop()).type != "cuda":
        return None
    # torch keeps the properties; it asks no driver.
    name = torch.cuda.get_device_properties(device).name
    return peak_flops(name, precision_of(model, args))
