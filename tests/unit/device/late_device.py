# SPDX-License-Identifier: Apache-2.0
"""A device that is behind the host, on a machine that has none."""

from __future__ import annotations

from collections import deque

import torch

from training_exporter.device.recorder import StepRecorder
from training_exporter.device.rows import AsyncRows, Event


class LateEvent:
    def __init__(self, device: LateDevice) -> None:
        self._device = device
        self.pending = False

    def query(self) -> bool:
        self._device.queries += 1
        assert not self._device.graph, "asking an event would break the capture of a graph"
        return not self.pending

    def synchronize(self) -> None:
        self._device.waits += 1
        while self.pending:
            self._device.advance()


class LateDevice:
    """Copies are done only when `advance` says so, one after the other, as on a stream.

    Attributes:
        waits: how often the host waited.
        queries: how often it asked without waiting.
        graph: whether a graph is being captured.
    """

    dtype = torch.float64
    pinned = False

    def __init__(self) -> None:
        self.waits = 0
        self.queries = 0
        self.graph = False
        self._queue: deque[tuple[torch.Tensor, torch.Tensor, LateEvent]] = deque()

    def new_event(self) -> LateEvent:
        return LateEvent(self)

    def copy(self, row: torch.Tensor, host: torch.Tensor, event: Event) -> None:
        assert isinstance(event, LateEvent)
        assert not event.pending, "a row was used again before its copy was done"
        event.pending = True
        host.fill_(-1.0)  # what a reader gets who does not wait for the event
        self._queue.append((row.clone(), host, event))

    def capturing(self) -> bool:
        return self.graph

    @property
    def behind(self) -> int:
        """Copies that are not done yet."""
        return len(self._queue)

    def advance(self, copies: int = 1) -> None:
        """Let the device finish some copies."""
        for _ in range(copies):
            row, host, event = self._queue.popleft()
            host.copy_(row)
            event.pending = False

    def rows(self, slots: int, columns: int) -> AsyncRows:
        return AsyncRows(torch.device("cpu"), slots=slots, columns=columns, backend=self)

    def recorder(self, slots: int = 64) -> StepRecorder:
        """A recorder to which every tensor is one of this device."""
        return StepRecorder(slots=slots, open_rows=lambda _, n, columns: self.rows(n, columns))
