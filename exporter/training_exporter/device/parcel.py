# SPDX-License-Identifier: Apache-2.0
"""Many numbers at once on their way to the host, for the rare case: rows are for each step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from training_exporter.device.rows import Accelerator, Backend

OpenBackend = Callable[[torch.device], Backend | None]


def open_backend(device: torch.device) -> Backend | None:
    """The backend of a device, None for the CPU, which can be read at once.

    Raises:
        TypeError: the device cannot be read without waiting for it.
    """
    return None if device.type == "cpu" else Accelerator(device)


class Parcel:
    """Numbers of one device, sent in one copy that nobody waits for.

    Args:
        numbers: 0-dim tensors of one device; at least one.
        backend: that of the device, None for the CPU.
    """

    def __init__(self, numbers: Sequence[torch.Tensor], backend: Backend | None) -> None:
        with torch.no_grad():
            # In float64 whole numbers are exact up to 2**53; some devices have float32 only.
            dtype = torch.float64 if backend is None else backend.dtype
            self._row = torch.stack([number.detach().to(dtype) for number in numbers])
            if backend is None:
                self._host, self._event = self._row, None
                return
            self._host = torch.zeros_like(
                self._row, device="cpu", pin_memory=backend.pinned, requires_grad=False
            )
            self._event = backend.new_event()
            backend.copy(self._row, self._host, self._event)

    def arrived(self) -> bool:
        """Whether the numbers are on the host. Never waits."""
        return self._event is None or self._event.query()

    def wait(self) -> None:
        """Wait until they are."""
        if self._event is not None:
            self._event.synchronize()

    def numbers(self) -> list[float]:
        """The numbers, in the order they were given. Valid only once they have arrived."""
        numbers: list[float] = self._host.tolist()
        return numbers
