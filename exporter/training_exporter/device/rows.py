# SPDX-License-Identifier: Apache-2.0
"""Device rows: a step's numbers gathered on the device and copied to the host without waiting.

A value is written into its row the moment it is given. Keeping the tensor for later would be wrong:
under CUDA graphs the next replay overwrites the memory it lies in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

from training_exporter.device.distributed import whole


class Event(Protocol):
    """A mark in the device's queue of work."""

    def query(self) -> bool:
        """Whether the device has passed the mark. Never waits."""
        ...

    def synchronize(self) -> None:
        """Wait until the device has passed the mark."""
        ...


class Backend(Protocol):
    """What one kind of device does in its own way. Tests put a device with late events here."""

    dtype: torch.dtype
    pinned: bool

    def new_event(self) -> Event: ...

    def copy(self, row: torch.Tensor, host: torch.Tensor, event: Event) -> None:
        """Start copying `row` to `host` and mark the end of the copy with `event`."""
        ...

    def capturing(self) -> bool:
        """Whether a graph is being captured, when nothing is computed and no event may be asked."""
        ...


class Accelerator:
    """The backend of CUDA, ROCm, XPU, MPS and of whatever else has a `torch.<type>.Event`.

    Raises:
        TypeError: the device type has no events, so that its values cannot be had without waiting.
    """

    def __init__(self, device: torch.device) -> None:
        module: Any = getattr(torch, device.type, None)
        events: Any = getattr(module, "event", module)  # torch.mps keeps its class one level down
        if not hasattr(events, "Event"):
            raise TypeError(
                f"tensors on {device.type!r} cannot be read without waiting for the device; "
                "pass numbers instead"
            )
        self._device = device
        self._module = module
        self.new_event = events.Event
        self.pinned = device.type != "mps"
        # MPS and many XPUs have no float64. There, token counts are exact up to 2**24 per step.
        self.dtype = torch.float64 if device.type == "cuda" else torch.float32

    def copy(self, row: torch.Tensor, host: torch.Tensor, event: Any) -> None:
        host.copy_(row, non_blocking=True)
        if hasattr(self._module, "current_stream"):
            # The stream that the copy ran on, which need not be the one of the current device.
            event.record(self._module.current_stream(self._device))
        else:
            event.record()

    def capturing(self) -> bool:
        return capturing_on(self._device)


def capturing_on(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured there, which to allocate anything would break."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


class AsyncVectors:
    """A ring of preallocated rows on one device, each with its place on the host and its event.

    A slot goes from `acquire` over writing to `send`, and once `arrived` says so over `read` to
    `release`. A row that is not set is not cleared: the caller knows what it set.

    Attributes:
        device: where the rows are.
    """

    def __init__(
        self, device: torch.device, *, slots: int, columns: int, backend: Backend | None = None
    ) -> None:
        self.device = device
        self._backend = backend = backend if backend is not None else Accelerator(device)
        with torch.inference_mode(False):  # else the rows could not be written to outside of it
            shape, dtype = (slots, columns), backend.dtype
            rows = torch.zeros(shape, dtype=dtype, device=device)
            host = torch.zeros(shape, dtype=dtype, device="cpu", pin_memory=backend.pinned)
            self._rows = rows.unbind()
            self._host = host.unbind()
        self._events = [backend.new_event() for _ in range(slots)]
        self._free = list(range(slots))

    def acquire(self) -> int | None:
        """A free slot, or None when the device is behind by as many steps as there are slots."""
        return self._free.pop() if self._free else None

    def release(self, slot: int) -> None:
        """Give a slot back: after it was read, or before it was sent."""
        self._free.append(slot)

    def fill(self, slot: int, start: int, values: torch.Tensor) -> None:
        """Write a 1-dim tensor of any real dtype, from any device, from column `start` on."""
        row = self._rows[slot].narrow(0, start, values.numel())
        row.copy_(values.detach(), non_blocking=True)

    def send(self, slot: int) -> None:
        """Start the row's way to the host."""
        self._backend.copy(self._rows[slot], self._host[slot], self._events[slot])

    def arrived(self, slot: int) -> bool:
        """Whether the row that was sent is on the host. Never waits."""
        return self._events[slot].query()

    def wait(self, slot: int) -> None:
        """Wait until the row that was sent is on the host."""
        self._events[slot].synchronize()

    def read(self, slot: int) -> list[float]:
        """The row, one number per column. Valid only once it has arrived."""
        values: list[float] = self._host[slot].tolist()
        return values

    def capturing(self) -> bool:
        """Whether a CUDA graph is being captured on the device."""
        return self._backend.capturing()


class AsyncRows(AsyncVectors):
    """Rows that are written number by number: the first value of a column is put, not added."""

    def __init__(
        self, device: torch.device, *, slots: int, columns: int, backend: Backend | None = None
    ) -> None:
        super().__init__(device, slots=slots, columns=columns, backend=backend)
        with torch.inference_mode(False):
            self._cells = [row.unbind() for row in self._rows]  # indexing costs more than writing

    def put(self, slot: int, column: int, value: torch.Tensor) -> None:
        """Write a 0-dim tensor of any dtype, from any device, into the row."""
        self._cells[slot][column].copy_(value.detach(), non_blocking=True)

    def add(self, slot: int, column: int, value: torch.Tensor) -> None:
        """Add a 0-dim tensor of any dtype, from any device, to what was put before."""
        value = value.detach()
        if value.device != self.device:
            value = value.to(self.device, non_blocking=True)
        self._cells[slot][column].add_(value)


def open_rows(device: torch.device, slots: int, columns: int) -> AsyncRows | None:
    """Rows on `device`, or None for the CPU, whose tensors can be read at once."""
    if device.type == "cpu":
        return None
    return AsyncRows(device, slots=slots, columns=columns)


OpenVectors = Callable[[torch.device, int, int], "AsyncVectors | None"]
"""As `open_vectors` is called."""


def open_vectors(device: torch.device, slots: int, columns: int) -> AsyncVectors | None:
    """The same for rows that are written many numbers at a time."""
    if device.type == "cpu":
        return None
    return AsyncVectors(device, slots=slots, columns=columns)


def single(tensor: torch.Tensor) -> torch.Tensor | None:
    """The one number in `tensor` as a 0-dim tensor; None when this process holds only part of it.

    Raises:
        ValueError: there is not exactly one number in it.
    """
    local = whole(tensor)
    if local is None or not local.dim():
        return local
    if local.numel() != 1:
        raise ValueError(f"expected one value, got a tensor of shape {tuple(local.shape)}")
    return local.reshape(())


def read(tensor: torch.Tensor) -> float:
    """The number in a 0-dim CPU tensor, without dispatching anything that counts as a sync."""
    if type(tensor) is not torch.Tensor:
        # tolist() reads the tensor's own memory, and a wrapper subclass has none.
        plain = torch.zeros((), dtype=torch.float64, device="cpu")
        plain.copy_(tensor.detach())
        tensor = plain
    value: Any = tensor.tolist()
    return float(value)
