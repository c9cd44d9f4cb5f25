# SPDX-License-Identifier: Apache-2.0
"""The forward-hook mode over steps: the forward passes of the last ones, looked into on request."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Final

from training_exporter.device.modules import FirstBadModule
from training_exporter.forensics.report import FIRST_MODULE, Gap, ModuleFinding

if TYPE_CHECKING:
    from torch import nn

MOST_PASSES: Final = 256
"""Forward passes that are remembered: values of a step come some steps late, and a step has
several micro-batches."""

_FORGOTTEN: Final = Gap(
    FIRST_MODULE,
    f"of the step's forward passes the first ones were forgotten: {MOST_PASSES} are remembered",
)


class ModuleWatch:
    """Watches forward passes, and says which module was first in that of a step.

    Args:
        guard: makes the error boundary in which what is not the user's runs.
    """

    def __init__(self, guard: Callable[[], AbstractContextManager[Any]]) -> None:
        self._guard = guard
        self._passes: deque[tuple[int, FirstBadModule]] = deque(maxlen=MOST_PASSES)
        self._forgotten = 0

    @contextmanager
    def watched(self, model: nn.Module, step: int) -> Iterator[None]:
        """Around a forward pass. Raises only what is raised inside it."""
        watch = None
        with self._guard():
            watch = FirstBadModule(model, step=step, guard=self._guard)
            watch.__enter__()
        if watch is None:
            yield
            return
        error: BaseException | None = None
        try:
            yield
        except BaseException as raised:
            error = raised
            raise
        finally:
            with self._guard():
                watch.__exit__(type(error) if error else None, error, None)
                self._remember(step, watch)

    def _remember(self, step: int, watch: FirstBadModule) -> None:
        if len(self._passes) == MOST_PASSES:
            self._forgotten = self._passes[0][0]
        self._passes.append((step, watch))

    def arrived(self, step: int) -> bool:
        """Whether it is known for a step. Never waits."""
        return all(one.arrived() for one in self._of(step))

    def wait(self, step: int) -> None:
        """Wait until it is: for the end of training only."""
        for one in self._of(step):
            one.wait()

    def take(self, step: int) -> tuple[ModuleFinding | None, tuple[Gap, ...]]:
        """The first module of a step whose output was not finite, and what could not be seen."""
        passes = self._of(step)
        self._passes = deque([one for one in self._passes if one[0] > step], maxlen=MOST_PASSES)
        gaps = {one.gap for one in passes if one.gap is not None}
        if step <= self._forgotten:
            gaps.add(_FORGOTTEN)
        found = next((found for one in passes if (found := one.found()) is not None), None)
        return found, tuple(gaps)

    def _of(self, step: int) -> list[FirstBadModule]:
        return [one for number, one in self._passes if number == step]
