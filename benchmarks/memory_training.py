# SPDX-License-Identifier: Apache-2.0
"""Real memory traces: small PyTorch trainings on the CPU, some with leaks that people write.

The bytes of all live tensors are counted as CUDA's allocator counts them, in units of 512. Tensors
that only autograd still holds have no Python object, so each operation's results are followed by
weak references to their storages. A frozen part of 2 GiB, which no step touches and which therefore
takes no real memory, makes a leak as small a share of the whole as it is on a GPU.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.memory_traces import GIB, Trace
from benchmarks.report import often

WIDTH = 64
ROWS = 640
STEPS = often(520)
ALLOCATION_UNIT = 512


class LiveBytes(TorchDispatchMode):
    """Follows every storage that an operation makes, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        for result in results if isinstance(results, tuple | list) else (results,):
            if isinstance(result, Tensor):
                storage = result.untyped_storage()
                units = -(-storage.nbytes() // ALLOCATION_UNIT)
                self._live[storage._cdata] = StorageWeakRef(storage), units * ALLOCATION_UNIT
        return results

    def total(self) -> int:
        """Bytes of the storages that are still held by anybody."""
        for key in [key for key, (ref, _) in self._live.items() if ref.expired()]:
            del self._live[key]
        return sum([size for _, size in self._live.values()])


class Training:
    """A small model, its optimiser, and what a user's own loop keeps from step to step."""

    def __init__(self) -> None:
        self.frozen = torch.empty(int(2 * GIB), dtype=torch.uint8)
        self.model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), fused=True)
        self.kept: list[Any] = []
        self.total: Any = 0.0
        self.last: Any = None

    def loss(self, rows: int = ROWS) -> tuple[Tensor, Tensor]:
        batch = torch.randn(rows, WIDTH)
        outputs = self.model(batch)
        return (outputs - batch).pow(2).mean(), outputs

    def step(self, rows: int = ROWS) -> tuple[Tensor, Tensor]:
        self.optimizer.zero_grad()
        loss, outputs = self.loss(rows)
        loss.backward()
        self.optimizer.step()
        return loss, outputs

    def evaluate(self, batches: int = 2) -> Any:
        total: Any = 0.0
        for _ in range(batches):
            total = total + self.loss()[0]
        return total


Loop = Callable[[Training, int, Random], object]
"""One step of somebody's training loop."""


def plain(run: Training, step: int, random: Random) -> None:
    run.step()


def varied(run: Training, step: int, random: Random) -> None:
    """Batches of any length, the last of which is still held; evaluations and checkpoints."""
    run.last = run.step(random.randrange(8, 2 * ROWS))
    if step % 50 == 0:
        with torch.no_grad():
            run.evaluate()
    if step % 100 == 0:
        run.kept = [{name: value.clone() for name, value in run.model.state_dict().items()}]


def losses_until_logged(run: Training, step: int, random: Random) -> None:
    run.kept.append(run.step()[0].detach())
    if step % 50 == 0:
        run.kept.clear()


def running_total(run: Training, step: int, random: Random) -> None:
    """`total += loss`: backward has let go of the tensors, what grows is the graph on the host."""
    run.total = run.total + run.step()[0]


def accumulating(run: Training, step: int, random: Random) -> None:
    """Gradients of four small batches, and a look at the memory after each of them."""
    (run.loss()[0] / 4).backward()
    if step % 4 == 0:
        run.optimizer.step()
        run.optimizer.zero_grad()


def outputs_kept(run: Training, step: int, random: Random) -> None:
    run.kept.append(run.step()[1].detach())


def outputs_kept_varied(run: Training, step: int, random: Random) -> None:
    run.last = run.step(random.randrange(8, 2 * ROWS))
    run.kept.append(run.last[1].detach())


def second_loss_summed(run: Training, step: int, random: Random) -> None:
    """A quantity to be logged is summed up with its graph, and nobody calls backward on it."""
    run.step()
    run.total = run.total + run.loss(ROWS // 2)[0]


def hook_keeps(run: Training, step: int, random: Random) -> None:
    if step == 1:
        keep = lambda module, inputs, outputs: run.kept.append(outputs)  # noqa: E731
        run.model[0].register_forward_hook(keep)
    run.step()


def evaluation_with_graph(run: Training, step: int, random: Random) -> None:
    """Evaluations without `no_grad` whose losses are kept, each with all that led to it."""
    run.step()
    if step % 16 == 0:
        run.kept.append(run.evaluate(batches=4))


HEALTHY: dict[str, Loop] = {
    "plain": plain,
    "lengths vary, evaluations, checkpoints": varied,
    "losses kept until logged": losses_until_logged,
    "total += loss, after backward": running_total,
    "gradient accumulation": accumulating,
}
LEAKING: dict[str, Loop] = {
    "outputs appended to a list": outputs_kept,
    "the same, lengths vary": outputs_kept_varied,
    "second loss summed with its graph": second_loss_summed,
    "forward hook keeps activations": hook_keeps,
    "evaluation losses kept with graph": evaluation_with_graph,
}


def real() -> Iterator[Trace]:
    """One trace of each loop. The leak is what was really lost per step."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name, loop in HEALTHY.items():
            yield Trace(name, _record(loop))
        for name, loop in LEAKING.items():
            held = _record(loop)
            yield Trace(name, held, (held[-1] - held[9]) / (len(held) - 10))
    finally:
        torch.set_num_threads(threads)


def _record(loop: Loop) -> array[float]:
    torch.manual_seed(0)
    random, held = Random(0), array("d")
    with LiveBytes() as live:
        run = Training()
        for step in range(1, STEPS + 1):
            loop(run, step, random)
            held.append(live.total())
    return held
