# SPDX-License-Identifier: Apache-2.0
"""The batches of the last steps, by reference, so that a NaN that is learnt of later can be traced.

On an accelerator a value of step n is known some steps later, when its batch would be gone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import torch

from training_exporter.forensics.report import MOST_INDICES

MOST_BYTES: Final = 64 << 20
MOST_STEPS: Final = 16
_MOST_TENSORS: Final = 256  # of a step, over its micro-batches
_DEEPEST: Final = 4


class _Kept(NamedTuple):
    micro_batch: int
    name: str
    tensor: torch.Tensor
    version: int | None


class KeptStep:
    """What was kept of a step.

    Attributes:
        step: its number, None while it is not closed.
        indices: rows of the data set in its batches, None where unknown.
        missing: why its tensors are not all here, None when they are.
    """

    def __init__(self) -> None:
        self.step: int | None = None
        self.indices: list[int] | None = None
        self.missing: str | None = None
        self.micro_batches = 0
        self.bytes = 0
        self.tensors: list[_Kept] = []

    def let_go(self, why: str) -> None:
        """Keep only the reason why nothing is kept."""
        self.tensors, self.bytes, self.missing = [], 0, why

    def named(self, *, unchanged: bool = False) -> list[tuple[str, torch.Tensor]]:
        """The tensors and their names.

        Args:
            unchanged: only those that nobody has written into since. A static buffer, of CUDA
                graphs say, soon holds the batch of another step.
        """
        return [
            (name if self.micro_batches < 2 else f"micro-batch {number}, {name}", tensor)
            for number, name, tensor, version in self.tensors
            if not unchanged or _version(tensor) == version
        ]


class KeptInputs:
    """References to the inputs of the last steps, never copies, and bounded in bytes.

    Memory that they keep from being used again counts, so of a view all that it is a view of.
    Tensors in host memory are kept until the next step only: a training on the CPU learns of a NaN
    at once, and batches of loader processes lie in shared memory, of which containers have little.

    Args:
        most_bytes: of an accelerator's memory, over all steps; 0 keeps nothing there.
        most_steps: steps to keep at most.

    Raises:
        ValueError: negative bytes or no step.
    """

    def __init__(self, *, most_bytes: int = MOST_BYTES, most_steps: int = MOST_STEPS) -> None:
        if most_bytes < 0 or most_steps < 1:
            raise ValueError(
                f"most_bytes must be at least 0 and most_steps at least 1, got {most_bytes!r} and"
                f" {most_steps!r}"
            )
        self._most_bytes = most_bytes
        self._most_steps = most_steps
        self._open = KeptStep()
        self._steps: deque[KeptStep] = deque()
        self._bytes = 0

    def keep(self, inputs: Any, indices: Sequence[int] | None = None) -> None:
        """Keep the inputs of a micro-batch of the step that `close_step` will close.

        Args:
            inputs: what goes into the model: tensors in mappings, lists and tuples.
            indices: the rows of the data set that it was made of.
        """
        current = self._open
        if not current.micro_batches:
            self._let_go_of_host_memory()
        current.micro_batches += 1
        if indices is not None:
            known = current.indices = current.indices or []
            known.extend(indices[: MOST_INDICES - len(known)])
        if current.missing is None:
            self._keep_tensors(current, inputs)

    def _keep_tensors(self, current: KeptStep, inputs: Any) -> None:
        for name, tensor in _tensors("", inputs, _DEEPEST):
            if len(current.tensors) == _MOST_TENSORS:
                current.let_go(f"it has more than {_MOST_TENSORS} tensors")
                return
            # Without its graph, which would keep activations and weights alive.
            kept = tensor.detach() if tensor.requires_grad else tensor
            current.tensors.append(_Kept(current.micro_batches, name, kept, _version(tensor)))
            current.bytes += _bytes_held(tensor)
        if current.bytes > self._most_bytes:
            current.let_go(
                f"it takes {current.bytes >> 20} MiB on the device, and"
                f" {self._most_bytes >> 20} MiB are kept"
            )

    def close_step(self, step: int) -> None:
        """Close a step, and let go of the oldest ones beyond the bounds."""
        closed, self._open = self._open, KeptStep()
        closed.step = step
        if not closed.micro_batches:  # else that was done when its first one came
            self._let_go_of_host_memory()
        self._steps.append(closed)
        self._bytes += closed.bytes
        while len(self._steps) > self._most_steps or self._bytes > self._most_bytes:
            self._bytes -= self._steps.popleft().bytes

    def discard(self) -> None:
        """Forget the step that is not closed."""
        self._open = KeptStep()

    def of(self, step: int) -> KeptStep | None:
        """What was kept of a step, None when it is too long ago or was never seen."""
        return next((kept for kept in reversed(self._steps) if kept.step == step), None)

    def current(self) -> KeptStep:
        """What was kept of the step that is not closed."""
        return self._open

    def _let_go_of_host_memory(self) -> None:
        """To be called once in each step, so that only the last one can have some."""
        if self._steps and self._steps[-1].tensors:
            last = self._steps[-1]
            last.tensors = [kept for kept in last.tensors if not _in_host_memory(kept.tensor)]
            if not last.tensors:
                last.missing = "it lay in host memory, where only the last one is kept"


def _tensors(name: str, value: Any, depth: int) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield name or "input", value
    elif depth and isinstance(value, Mapping):
        for key, one in value.items():
            yield from _tensors(f"{name}.{key}" if name else str(key), one, depth - 1)
    elif depth and isinstance(value, list | tuple):
        for index, one in enumerate(value[:_MOST_TENSORS]):
            yield from _tensors(f"{name}[{index}]", one, depth - 1)


def _in_host_memory(tensor: torch.Tensor) -> bool:
    return tensor.is_cpu


def _version(tensor: torch.Tensor) -> int | None:
    """How often it was written into; None where torch does not count."""
    return None if tensor.is_inference() else tensor._version


def _bytes_held(tensor: torch.Tensor) -> int:
    """Bytes of device memory that the reference keeps from being used again."""
    if _in_host_memory(tensor) or tensor.is_meta:
        return 0
    if type(tensor) is not torch.Tensor or tensor.layout is not torch.strided:
        return tensor.numel() * tensor.element_size()  # it has no storage of its own
    return tensor.untyped_storage().nbytes()
