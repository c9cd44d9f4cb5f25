# SPDX-License-Identifier: Apache-2.0
"""Going on where a checkpoint was saved: what is kept beside it, and when that is taken over.

What is kept are the levels, which belong to the weights and go back with them: averages, what the
detectors have learnt, curves, and what went into the weights. What was counted is not: the process
before had counted further than to its last checkpoint, and a counter that goes back would look to
Prometheus like a reset, of which `increase()` adds the whole.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from stat import S_ISREG
from typing import Any, Final, NoReturn

from training_exporter.catalog import (
    RESUME_FAILURES,
    RESUME_FOREIGN,
    RESUME_MISSING,
    RESUME_UNREADABLE,
    RESUME_WORLD_SIZE,
)
from training_exporter.files import write_whole
from training_exporter.monitor import TrainingMonitor
from training_exporter.status import ExporterHealth, RunStatus, StatusBoard

FILE_NAME: Final = "training_exporter_state.json"
FORMAT: Final = 1
MAX_BYTES: Final = 4 * 2**20
"""A state is some 30 kB; detectors of a user's own may know more."""
MAX_RESTARTS: Final = 2**31
LAUNCHER_COUNTS: Final = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
"""Where torchrun and Slurm say how often they have started this run again."""

_NONSENSE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What it raises to take over a state that is none."""

logger = logging.getLogger("training_exporter")


class CannotResumeError(Exception):
    """A state is not taken over.

    Attributes:
        reason: one of catalog.RESUME_FAILURES.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{RESUME_FAILURES[reason]} ({detail})")
        self.reason = reason


class Resumption:
    """Saves where a run is, and goes on from there in the same process or another.

    Args:
        board, monitor: of the run.
        health: counts what could not be taken over.
    """

    def __init__(
        self, board: StatusBoard, monitor: TrainingMonitor, health: ExporterHealth
    ) -> None:
        self._board = board
        self._monitor = monitor
        self._health = health

    def state(self, step: int) -> dict[str, Any]:
        """All that it needs to go on after `step`, as values that any JSON can hold."""
        status = self._board.status
        return {
            "format": FORMAT,
            "run": status.run,
            "rank": status.rank,
            "world_size": _world_size(status),
            "step": step,
            "restarts": status.restarts,
            "levels": self._monitor.levels(),
        }

    def save(self, checkpoint: Path, step: int) -> None:
        """Put the state into the folder of a checkpoint, whole or not at all.

        Raises:
            OSError: it cannot be written there.
            ValueError, TypeError: a detector has learnt what JSON cannot hold, or too much.
        """
        write_state(checkpoint, self.state(step))

    def go_on(self, load: Callable[[], Mapping[str, Any]], step: int | None) -> int | None:
        """Take over a state. One that cannot be is a warning, and averages and detectors are new.

        Args:
            load: returns the state, or raises CannotResumeError.
            step: the step the training goes on after, None when that of the state is.

        Returns:
            the step the state is of, None when it was not taken over.
        """
        status = self._board.status
        elsewhere = self._monitor.snapshot.signals is None  # else this process has trained before
        try:
            state = load()
            _check(state, status, step)
            self._take_over(state)
        except CannotResumeError as failure:
            self._monitor.load_levels({})
            self._health.count_resume_failure(failure.reason)
            logger.log(
                logging.WARNING if status.rank == 0 else logging.INFO,
                "the training goes on from a checkpoint, with averages and detectors as new: %s",
                failure,
            )
            before, at = 0, None
        else:
            before, at = state["restarts"], state["step"]
            logger.info("averages and detectors go on after step %d", at)
        if elsewhere:
            restarts = max(status.restarts, before + 1)
            self._board.status = self._board.status._replace(restarts=restarts)
        return at

    def _take_over(self, state: Mapping[str, Any]) -> None:
        levels = dict(state["levels"])
        if state["rank"] != self._board.status.rank:
            # The steps are those of all ranks; what the others put into them is not known.
            levels["run"] = {"steps": (levels.get("run") or {}).get("steps")}
        try:
            self._monitor.load_levels(levels)
        except _NONSENSE as error:
            raise CannotResumeError(RESUME_UNREADABLE, repr(error)) from error


def launcher_restarts(environ: Mapping[str, str]) -> int:
    """How often the launcher says that it has started this run again."""
    told = [environ.get(name, "") for name in LAUNCHER_COUNTS]
    return max([0, *[int(count) for count in told if count.isdecimal()]])


def write_state(checkpoint: Path, state: Mapping[str, Any]) -> None:
    """Write a state into a folder, whole or not at all.

    Raises:
        OSError: it cannot be written there.
        ValueError, TypeError: it is nothing that JSON can hold, or too much.
    """
    data = json.dumps(state, allow_nan=False, separators=(",", ":")).encode()
    if len(data) > MAX_BYTES:
        raise ValueError(f"a state of {len(data)} bytes is more than the {MAX_BYTES} allowed")
    # Not in the checkpoint, which somebody may be uploading, and by a name that uploads leave out.
    draft = checkpoint.parent / f"_{FILE_NAME}.{os.getpid()}"
    write_whole(checkpoint / FILE_NAME, data, draft=draft)


def read_state(checkpoint: Path) -> Mapping[str, Any]:
    """Read what `write_state` wrote.

    Raises:
        CannotResumeError: there is none, or nothing that could be one.
    """
    path = checkpoint / FILE_NAME
    try:
        if not S_ISREG(path.stat().st_mode):
            raise CannotResumeError(RESUME_UNREADABLE, f"{path} is no file")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise CannotResumeError(RESUME_MISSING, f"there is no {path}") from None
    except OSError as error:
        raise CannotResumeError(RESUME_UNREADABLE, str(error)) from error
    if len(data) > MAX_BYTES:
        raise CannotResumeError(RESUME_UNREADABLE, f"{path} is larger than {MAX_BYTES} bytes")
    try:
        state: Mapping[str, Any] = json.loads(data, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise CannotResumeError(RESUME_UNREADABLE, f"{path}: {error}") from error
    return state


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _check(state: Mapping[str, Any], status: RunStatus, step: int | None) -> None:
    """Refuse a state that is not of this run at this step.

    Raises:
        CannotResumeError: with the reason.
    """
    if not isinstance(state, Mapping) or state.get("format") != FORMAT:
        raise CannotResumeError(RESUME_UNREADABLE, f"its format is not {FORMAT}")
    wanted = {"run": str, "rank": int, "world_size": int, "step": int, "restarts": int}
    for name, kind in {**wanted, "levels": Mapping}.items():
        if not isinstance(state.get(name), kind):
            raise CannotResumeError(RESUME_UNREADABLE, f"its {name} is {state.get(name)!r:.80}")
    if not 0 <= state["restarts"] < MAX_RESTARTS:
        raise CannotResumeError(RESUME_UNREADABLE, "its restarts are no count")
    if state["run"] != status.run:
        detail = f"of {state['run']!r:.80}, not {status.run!r}"
        raise CannotResumeError(RESUME_FOREIGN, detail)
    if step is not None and state["step"] != step:
        raise CannotResumeError(RESUME_FOREIGN, f"of step {state['step']}, not {step}")
    world_size = _world_size(status)
    if state["world_size"] != world_size:
        raise CannotResumeError(RESUME_WORLD_SIZE, f"{state['world_size']}, now {world_size}")


def _world_size(status: RunStatus) -> int:
    told = status.info.get("world_size", "")
    return int(told) if told.isdecimal() else 1
