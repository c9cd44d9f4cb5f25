# SPDX-License-Identifier: Apache-2.0
"""The level of one signal, at almost no cost on a healthy step."""

from __future__ import annotations

from training_exporter.detectors.base import Quiet, StatefulDetector, require

BLOCK = 16
"""Values of a block, once there are enough to fill it."""
_EARLY_BLOCKS = (1, 1, 2, 4, 8)


def whole(name: str, value: float, *, least: int) -> int:
    """An option that counts something, as an integer.

    Raises:
        ValueError: naming the option, its valid range and what was given.
    """
    require(name, value, least=least)
    if value != int(value):
        raise ValueError(f"{name} must be a whole number at least {least}, got {value!r}")
    return int(value)


class BlockDetector(StatefulDetector):
    """A detector that compares each value with a limit taken from the level before it.

    The level is the median of the medians of the last `_kept` blocks. Sorting a window on each
    step would cost more than all else that a step is judged by, so new values gather in `_fresh`,
    and only when there are `_due` of them is the limit taken anew. Blocks are of 1, 1, 2, 4 and 8
    values at first, so that a limit is known from the start and never older than half of what is
    known. The subclass appends to `_fresh` itself: calling a method would double the cost.
    """

    _learnt: tuple[str, ...] = ("_levels", "_fresh")
    _kept: int
    """Blocks that make up the level."""
    _quiet: Quiet
    """What to answer when nothing is wrong."""

    def _forget(self) -> None:
        self._levels: list[float] = []
        self._fresh: list[float] = []
        self._settle()

    def _absorb(self) -> None:
        """Let the fresh values become a block."""
        fresh, levels = self._fresh, self._levels
        fresh.sort()
        levels.append(fresh[(len(fresh) - 1) // 2])
        fresh.clear()
        self._settle()

    def _settle(self) -> None:
        """Take the level anew."""
        levels = self._levels
        del levels[: -self._kept]
        blocks = len(levels)
        self._due = _EARLY_BLOCKS[blocks] if blocks < len(_EARLY_BLOCKS) else BLOCK
        self._derive(sorted(levels)[(blocks - 1) // 2] if blocks else None, blocks)

    def _derive(self, level: float | None, blocks: int) -> None:
        """Set the limit, and `_quiet` to HEALTHY once it can be relied on.

        Args:
            level: the level, None while nothing is known.
            blocks: how many blocks it stands on.
        """
        raise NotImplementedError
