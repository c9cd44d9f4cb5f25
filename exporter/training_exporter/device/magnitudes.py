# SPDX-License-Identifier: Apache-2.0
"""Counts the values in the gradients by powers of two, without waiting for the device."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary, ref

import torch

from training_exporter.device.layer_index import Index
from training_exporter.device.layers import OpenVectors
from training_exporter.device.one_pass import Sheet, arrived, release, send, write_scale
from training_exporter.device.rows import AsyncVectors, open_vectors
from training_exporter.layers.magnitudes import (
    RAW_HIGHEST,
    RAW_LOWEST,
    SUBNORMAL_END,
    Magnitudes,
    RawCounts,
    combine,
)

CHUNK: Final = 2**23
"""Bytes of gradients that are looked at together: what is made of them is five times as much, and
no count reaches 2**24, beyond which float32 does not count on."""

CHUNK_ON_CPU: Final = 2**19
"""The same on the CPU, where all of it then stays in the cache."""

_EXPONENTS: Final = RAW_HIGHEST - RAW_LOWEST + 1
_COLUMNS: Final = _EXPONENTS + 4


class _Bits(NamedTuple):
    """How a float lies in memory (IEEE 754): sign, exponent, fraction."""

    floats: torch.dtype
    whole: torch.dtype
    fraction: int
    bias: int

    @property
    def infinity(self) -> int:
        return (2 * self.bias + 1) << self.fraction


_SINGLE: Final = _Bits(torch.float32, torch.int32, fraction=23, bias=127)
_DOUBLE: Final = _Bits(torch.float64, torch.int64, fraction=52, bias=1023)


class _Pass:
    """One pass, on its way to the host."""

    def __init__(self, sheets: dict[torch.device, Sheet]) -> None:
        self.sheets = sheets
        self.scale: list[float | None] = [1.0]
        self._found: dict[torch.device, list[float | None]] = {}

    def read(self, index: Index, loss_scale: object) -> None:
        write_scale(loss_scale, self.scale, self.sheets)
        rows: dict[torch.device, list[torch.Tensor]] = {}
        for group in index.groups:
            _, gradients = group.gradients(set())
            row = rows.setdefault(group.device, [])
            row.extend(count(chunk) for chunk in _chunks(gradients))
        for device, counted in rows.items():
            if counted:
                into = self._found[device] = [None] * _COLUMNS
                self.sheets[device].write_vector(into, range(_COLUMNS), _added(counted))

    def finish(self) -> Magnitudes:
        for sheet in self.sheets.values():
            sheet.unpack()
        return combine([_raw(row) for row in self._found.values()], self.scale[0])


class MagnitudePass:
    """Counts the values of a model's gradients by powers of two, on the steps it is asked to.

    On such a step, `before_clipping` when the gradients of all micro-batches are there; on every
    step `collect`. All from the training's thread. Nothing is changed, nobody waits, and no
    collective is run: of a sharded gradient the values that are here are counted. Of a complex
    gradient, real and imaginary parts are.

    Args:
        model: what has the `named_parameters()`. It is not kept alive.
        slots: passes that may be outstanding; beyond it they are dropped.
        open_vectors: makes the rows for a device, None for a device that can be read at once.

    Attributes:
        dropped: passes lost because the device was behind or a graph was being captured.
    """

    def __init__(
        self, model: Any, *, slots: int = 4, open_vectors: OpenVectors = open_vectors
    ) -> None:
        self.dropped = 0
        self._model = ref(model)
        self._slots = slots
        self._open_vectors = open_vectors
        self._index: WeakKeyDictionary[Any, Index] = WeakKeyDictionary()
        self._vectors: dict[torch.device, AsyncVectors | None] = {}
        self._sent: deque[_Pass] = deque()

    @torch.no_grad()
    def before_clipping(self, loss_scale: object = None) -> None:
        """Count the gradients as they are now.

        Args:
            loss_scale: what the gradients are still multiplied by: a number, or a tensor with one
                element, which stays on its device.

        Raises:
            TypeError, ValueError: a loss scale that is neither.
        """
        model = self._model()
        if model is None:
            return
        index = None if self._capturing() else self._current_index(model)
        sheets = self._give_rows() if index is not None else None
        if index is None or sheets is None:
            self.dropped += 1
            return
        started = _Pass(sheets)
        try:
            started.read(index, loss_scale)
        except BaseException:
            release(sheets)
            raise
        send(sheets)
        self._sent.append(started)

    def collect(self, *, wait: bool = False) -> list[Magnitudes]:
        """The passes that have arrived, in order.

        Args:
            wait: wait for all, which is for the end of training only.
        """
        if not self._sent or self._capturing():
            return []
        found = []
        while self._sent and arrived(self._sent[0].sheets, wait=wait):
            found.append(self._sent.popleft().finish())
        return found

    def _current_index(self, model: Any) -> Index:
        index = self._index.get(model)
        if index is None or index.outdated():
            index = self._index[model] = Index(model.named_parameters(), 0)
            self._vectors = {
                device: self._open_vectors(device, self._slots, _COLUMNS + 1)
                for device in dict.fromkeys(group.device for group in index.groups)
            }
        return index

    def _give_rows(self) -> dict[torch.device, Sheet] | None:
        """A free row on each device; None, and none taken, if one has none."""
        sheets: dict[torch.device, Sheet] = {}
        for device, vectors in self._vectors.items():
            slot = 0 if vectors is None else vectors.acquire()
            if slot is None:
                release(sheets)
                return None
            sheets[device] = Sheet(vectors, slot)
        return sheets

    def _capturing(self) -> bool:
        return any(
            vectors is not None and vectors.capturing() for vectors in self._vectors.values()
        )


def count(values: torch.Tensor) -> torch.Tensor:
    """RawCounts of up to CHUNK bytes of values of any shape, as a 1-dim tensor on their device."""
    layout = _DOUBLE if values.dtype is torch.float64 else _SINGLE
    magnitudes = values.to(layout.floats).abs()
    bits = magnitudes.view(layout.whole)
    found = [
        (bits == 0).sum(), (magnitudes < SUBNORMAL_END).sum(), (bits >= layout.infinity).sum(),
    ]  # fmt: skip
    # A fraction other than 0 carries over into the exponent: a bucket includes its upper bound.
    above = bits.clamp(max=layout.infinity).add_((1 << layout.fraction) - 1)
    exponents = above.bitwise_right_shift_(layout.fraction).sub_(layout.bias)
    places = exponents.clamp_(RAW_LOWEST, RAW_HIGHEST).sub_(RAW_LOWEST)
    wide = _wide(values.device)
    buckets = _by_bincount(places) if places.is_cpu else _by_histc(places)
    total = magnitudes.nan_to_num_(0.0, posinf=0.0).sum(dtype=wide)
    return torch.cat([buckets.to(wide), torch.stack([*[each.to(wide) for each in found], total])])


def _by_bincount(places: torch.Tensor) -> torch.Tensor:
    """How often there is each; seven times as fast as histc on a CPU, and elsewhere it waits."""
    return torch.bincount(places.reshape(-1), minlength=_EXPONENTS)


def _by_histc(places: torch.Tensor) -> torch.Tensor:
    with _any_order():
        return torch.histc(places.to(torch.float32), _EXPONENTS, -0.5, _EXPONENTS - 0.5)


def _added(counted: Sequence[torch.Tensor]) -> torch.Tensor:
    return counted[0] if len(counted) == 1 else torch.stack(list(counted)).sum(0)


def _wide(device: torch.device) -> torch.dtype:
    """What counts on beyond 2**24. MPS and many XPUs have no float64."""
    return torch.float64 if device.type in {"cpu", "cuda"} else torch.float32


def _chunks(gradients: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Gradients of one dtype and device: small ones together, large ones in parts, so that few and
    bounded calls do it."""
    if not gradients:
        return
    waiting: list[torch.Tensor] = []
    chunk = CHUNK_ON_CPU if gradients[0].is_cpu else CHUNK
    most = room = chunk // max(4, gradients[0].element_size())
    for gradient in gradients:
        for part in _parts(gradient, most):
            if part.numel() > room and waiting:
                yield _together(waiting)
                waiting, room = [], most
            waiting.append(part)
            room -= part.numel()
    if waiting:
        yield _together(waiting)


def _parts(tensor: torch.Tensor, most: int) -> Iterator[torch.Tensor]:
    """Views of up to so many elements. Not of the flat tensor: flattening may copy it."""
    if tensor.numel() <= most:
        yield tensor
        return
    longest = max(range(tensor.dim()), key=lambda dimension: tensor.shape[dimension])
    for half in tensor.tensor_split(2, longest):
        yield from _parts(half, most)


def _together(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat([part.reshape(-1) for part in parts])


def _raw(row: Sequence[Any]) -> RawCounts:
    return RawCounts(row[:_EXPONENTS], *row[_EXPONENTS:])


@contextmanager
def _any_order() -> Iterator[None]:
    """Counts are whole, so the order in which they are added up makes no difference, though torch
    refuses to count on CUDA where only deterministic algorithms are allowed."""
    if not torch.are_deterministic_algorithms_enabled():
        yield
        return
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(True, warn_only=warn_only)
