# SPDX-License-Identifier: Apache-2.0
"""What a black box says, also one whose process was killed in the middle of a write."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Mapping
from operator import itemgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple, TypeVar

from training_exporter.ledger import Ledger
from training_exporter.lifecycle.blackbox_format import (
    FILE_SIZE,
    HEAD_SIZE,
    KEPT_STEPS,
    MAGIC,
    RING,
    STEP_SIZE,
    STEPS_AT,
    SUMS_AT,
    SUMS_SIZE,
    TEXT_SIZE,
    TEXTS_AT,
    NumberedStep,
    is_empty,
    read_step,
    read_sums,
    read_text,
)
from training_exporter.lifecycle.processes import Process, this_process
from training_exporter.signals import StepSignals
from training_exporter.snapshot import Anomaly, Totals

_T = TypeVar("_T")
_IN_HEAD: Final = ("run", "rank", "pid", "host", "process", "started", "version")
_SUM_GROUPS: Final = ("pauses", "compute")


class BoxError(Exception):
    """A file cannot be read or is no black box. The message is one line that names it."""


class UnfinishedBoxError(BoxError):
    """The process was killed just as it began its box: nothing was written yet."""


class Counters(NamedTuple):
    """Everything that was counted, exact to the last step.

    Attributes:
        counts: what TrainingMonitor.load_counts takes.
        pauses: seconds by activity, one of catalog.PAUSES.
        compute: seconds of the device by phase, one of catalog.COMPUTE_PHASES.
        reports: how many reports on NaN and Inf there were.
        restarts: how often the run went on in another process.
    """

    counts: Mapping[str, Any]
    pauses: Mapping[str, float]
    compute: Mapping[str, float]
    reports: int
    restarts: int

    @property
    def totals(self) -> Totals:
        return Totals(**self.counts["totals"])

    @property
    def anomalies(self) -> Mapping[str, int]:
        """How many there were of each kind."""
        return {kind: found["total"] for kind, found in self.counts["anomalies"].items()}


class Box(NamedTuple):
    """What a black box says of the process that wrote it.

    Attributes:
        run, rank: of which run it was.
        pid, host: which process.
        process: the same, as processes.Process has it in a text.
        started: Unix time at which it opened the box.
        version: of this package, in that process.
        info: labels of `training_run_info`.
        state: the last state of the run, one of catalog.RUN_STATES.
        failure: class of the exception that ended the run, None while none did.
        written: Unix time of the last thing that was written.
        lives: whether the process still writes; None where the file system does not say.
        steps: the last steps, oldest first; of the learning rates only the first.
        anomalies: the last anomalies, oldest first.
        counters: everything that was counted.
        torn: slots that were being written when the process was killed, or have been damaged since.
    """

    run: str
    rank: int
    pid: int
    host: str
    process: str
    started: float
    version: str
    info: Mapping[str, str]
    state: str
    failure: str | None
    written: float
    lives: bool | None
    steps: tuple[StepSignals, ...]
    anomalies: tuple[Anomaly, ...]
    counters: Counters
    torn: int

    @property
    def step(self) -> int | None:
        """The last step, None before the first."""
        return self.steps[-1].step if self.steps else None

    @property
    def is_of_this_process(self) -> bool:
        """Whether it was written by an exporter before in the very process that reads it."""
        mine = this_process()
        return mine.machine != "" and self.process == str(mine)


def read_box(path: Path) -> Box:
    """The black box in a file.

    Raises:
        BoxError: there is none, it cannot be read, is no black box, or nothing in it is whole.
    """
    try:
        with path.open("rb") as file:
            content = file.read(FILE_SIZE + 1)
            locked = _is_locked(file.fileno())
    except OSError as error:
        raise BoxError(f"{path}: {error.strerror or error}") from None
    try:
        box = _box(content, lives=locked)
        return box._replace(lives=False) if locked and _has_ended(box.process) else box
    except BoxError as error:
        raise type(error)(f"{path}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BoxError(f"{path}: the black box is damaged ({error!r})") from None


def last_seen(box: Box, now: float) -> str:
    """How the process before this one ended, in a line for the log."""
    where = "before its first step" if box.step is None else f"at step {box.step}"
    seen = f"was last seen {where} in state {box.state}{failed_with(box)}, {ago(box, now)}"
    if box.is_of_this_process:
        return f"an exporter before this one in this process {seen}"
    line = f"the process before this one (pid {box.pid} on {box.host}) {seen}"
    return f"{line}, and is still there" if box.lives else line


def failed_with(box: Box) -> str:
    """The exception that ended the run, in words to append."""
    return f" with {box.failure}" if box.failure else ""


def ago(box: Box, now: float) -> str:
    """How long ago it was last written."""
    seconds = max(0.0, now - box.written)
    for size, unit in ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def _is_locked(descriptor: int) -> bool | None:
    """Whether somebody holds the lock that a writing process holds until it ends. Some file systems
    are late in giving it back."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    return False


def _has_ended(process: str) -> bool:
    """Whether a process is known to be no more, as one of another machine never is."""
    writer = Process.from_text(process)
    return writer.is_of_machine_of(this_process()) and not writer.is_alive()


def _box(content: bytes, lives: bool | None) -> Box:
    if MAGIC.startswith(content[: len(MAGIC)].rstrip(b"\0")) and not any(content[TEXTS_AT:]):
        raise UnfinishedBoxError("nothing was written into this black box yet")
    if content[: len(MAGIC) - 1] != MAGIC[:-1]:
        raise BoxError("this is no black box")
    if content[: len(MAGIC)] != MAGIC:
        raise BoxError("this black box is from another version of training-exporter")
    if len(content) != FILE_SIZE:
        raise BoxError("the black box is cut off, or something was added to it")
    head = read_text(content[len(MAGIC) : HEAD_SIZE])
    texts, torn_texts = _whole(content, TEXTS_AT, TEXT_SIZE, 2, read_text)
    if head is None or not texts:
        raise BoxError("the black box is damaged: nothing in it is whole")
    about, (_, state) = head[1], max(texts, key=itemgetter(0))
    names: list[str] = about["sums"]
    sums, torn_sums = _whole(
        content, SUMS_AT, SUMS_SIZE, 2, lambda slot: read_sums(slot, len(names))
    )
    ring, torn_steps = _whole(content, STEPS_AT, STEP_SIZE, RING, read_step)
    noted = sorted(ring, key=itemgetter(0))
    values = max(sums, key=itemgetter(0))[1] if sums else ()
    steps = tuple([step.signals for step in noted[-KEPT_STEPS:]])
    return Box(
        **{name: about[name] for name in _IN_HEAD},
        info=MappingProxyType(state["info"]),
        state=state["state"],
        failure=state["failure"],
        written=max([state["time"], *[step.timestamp for step in steps[-1:]]]),
        lives=lives,
        steps=steps,
        anomalies=tuple([Anomaly(*found) for found in state["recent"]]),
        counters=_counters(state, noted, dict(zip(names, values, strict=False))),
        torn=torn_texts + torn_sums + torn_steps,
    )


def _counters(
    state: Mapping[str, Any], noted: list[NumberedStep], sums: Mapping[str, float]
) -> Counters:
    """What had been counted at the last step: the counts of the state, and the steps after it."""
    ledger = Ledger(0.0)
    ledger.load_counts(state["counts"])
    before = [step.signals for step in noted if step.number == state["steps"]]
    ledger.loss_scale = before[0].loss_scale if before else None  # from which skips are seen
    ledger = ledger.after([step.signals for step in noted if step.number > state["steps"]])
    by_group = {
        group: {
            name.partition(":")[2]: value
            for name, value in sums.items()
            if name.startswith(f"{group}:")
        }
        for group in _SUM_GROUPS
    }
    return Counters(
        counts={**state["counts"], **ledger.counts()},
        pauses=by_group["pauses"],
        compute=by_group["compute"],
        reports=int(sums.get("reports", 0.0)),
        restarts=int(sums.get("restarts", 0.0)),
    )


def _whole(
    content: bytes, start: int, size: int, count: int, read: Callable[[bytes], _T | None]
) -> tuple[list[_T], int]:
    """What is in the slots of one sort that are whole, and how many are torn."""
    slots = [content[at : at + size] for at in range(start, start + count * size, size)]
    found = [(read(slot), slot) for slot in slots]
    torn = [slot for one, slot in found if one is None and not is_empty(slot)]
    return [one for one, _ in found if one is not None], len(torn)
