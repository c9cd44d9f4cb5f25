# SPDX-License-Identifier: Apache-2.0
"""From a path to verdicts: the log is read once, piece by piece, by all profiles together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from math import isfinite
from pathlib import Path

from training_exporter.detectors import Options
from training_exporter.replay.columns import STEP, Columns
from training_exporter.replay.judging import Judge
from training_exporter.replay.rows import Event, Rows, usual_stride
from training_exporter.replay.sources import Source, find_source
from training_exporter.replay.text_logs import Record
from training_exporter.replay.trouble import ReplayError, Troubles
from training_exporter.replay.windows import profile_options, require_known
from training_exporter.signals import StepSignals

BEGINNING = 1000
"""Records by which is decided what is what."""
TICK = 2048
"""Rows between two words on how far it is."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How to replay.

    Attributes:
        profiles: which detectors; a verdict for each.
        options: of detectors; each goes to the profiles that have it.
        names: name in the log by signal, over what the names look like.
        clip_threshold: norm above which gradients were clipped, where the log does not say it.
        windows_in_steps: False counts the windows of the textbook profile in rows.
    """

    profiles: tuple[str, ...] = ("robust",)
    options: Options = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    clip_threshold: float | None = None
    windows_in_steps: bool = True

    def __post_init__(self) -> None:
        require_known(self.profiles, self.options)
        for profile in self.profiles:
            profile_options(profile, self.options, 1)


@dataclass
class Course:
    """What a run looked like, whoever judges it.

    Attributes:
        first_step, last_step: of its rows, in the order of the log.
        loss: the last one.
        best_loss, best_step: the lowest finite one.
        eval_losses: the last one of each data set.
    """

    rows: int = 0
    evaluations: int = 0
    first_step: int | None = None
    last_step: int | None = None
    loss: float | None = None
    best_loss: float | None = None
    best_step: int | None = None
    eval_losses: dict[str, float] = field(default_factory=dict)

    def note(self, event: Event) -> None:
        """Take in a step or an evaluation."""
        if not isinstance(event, StepSignals):
            self.evaluations += 1
            if event.loss is not None:
                self.eval_losses[event.dataset] = event.loss
            return
        self.rows += 1
        if self.first_step is None:
            self.first_step = event.step
        self.last_step = event.step
        loss = event.loss
        if loss is not None:
            self.loss = loss
            if isfinite(loss) and (self.best_loss is None or loss < self.best_loss):
                self.best_loss, self.best_step = loss, event.step


class Playback:
    """A log that is about to be replayed.

    Args:
        path: file or folder.
        plan: how.
        wait: waits at the end of the log for more to be written, False when no more is to be waited
            for. None reads what is there.

    Attributes:
        source: what lies there.
        columns: what was taken for which signal.
        stride: steps from one row to the next, None when that is not known.
        window_stride: how many steps of a window a row stands for.
        troubles: what is wrong with it, so far as it was read.
        judges: one for each profile.
        course: what it looked like, so far.

    Raises:
        ReplayError: nothing that can be replayed, saying what was expected.
    """

    def __init__(self, path: Path, plan: Plan, wait: Callable[[], bool] | None = None) -> None:
        self.path = path
        self.troubles = Troubles()
        self.source: Source = find_source(path, self.troubles)
        names = dict(plan.names)
        if self.source.format.step is not None:
            names.setdefault(STEP, self.source.format.step)
        self.columns = Columns(names)
        self.course = Course()
        self._clip_threshold = plan.clip_threshold
        if wait is not None:
            self._require_growing()
        wait = wait or _nothing_comes
        self._records = self.source.records(self.troubles, wait)
        beginning = self._beginning(wait)
        self.columns.learn_all(beginning)
        self.columns.require_chosen(beginning)
        self.columns.require_something(beginning)
        self.stride = self._usual_stride(beginning)
        self.window_stride = (self.stride or 1) if plan.windows_in_steps else 1
        self.judges = [
            Judge(
                profile,
                profile_options(profile, plan.options, self.window_stride),
                self.troubles,
            )
            for profile in plan.profiles
        ]

    def play(
        self,
        progress: Callable[[int], object] = lambda _: None,
        *,
        judged: Callable[[Event], object] | None = None,
    ) -> None:
        """Judge it to its end.

        Args:
            progress: is told now and then how many bytes were read.
            judged: is told of each step and evaluation once it was judged.

        Raises:
            ReplayError: it has no row that can be judged.
        """
        note = self.course.note
        observers: list[Callable[[Event], object]] = [judge.observe for judge in self.judges]
        if judged is not None:
            observers.append(judged)
        for number, event in enumerate(self.events()):
            note(event)
            for observe in observers:
                observe(event)
            if number % TICK == 0:
                progress(self.source.position)
        progress(self.source.total_bytes)
        if not self.course.rows:
            raise ReplayError(self._nothing(self.troubles))

    def events(self) -> Iterator[Event]:
        """Its steps and evaluations, once."""
        rows = Rows(self.columns, self.troubles, self._clip_threshold)
        return rows.events(self._records)

    def _require_growing(self) -> None:
        if not self.source.format.grows or self.source.paths[-1].suffix == ".gz":
            raise ReplayError(
                "JSON lines, CSV and TensorBoard events can be followed while they are written;"
                f" {self.source.paths[-1]} is {self.source.format.name}"
            )

    def _beginning(self, wait: Callable[[], bool]) -> list[Record]:
        """The first records, once there are any; they are read again when it is played.

        Raises:
            ReplayError: there are none.
        """
        while True:
            troubles = Troubles()
            source = Source(self.source.format, self.source.paths)
            found = list(islice(source.records(troubles), BEGINNING))
            if found:
                return found
            if not wait():
                raise ReplayError(self._nothing(troubles))

    def _usual_stride(self, beginning: list[Record]) -> int | None:
        if STEP not in self.columns.names:
            return None
        # What is wrong is noted when it is played.
        return usual_stride(Rows(self.columns, Troubles()).events(beginning))

    def _nothing(self, troubles: Troubles) -> str:
        why = "; ".join(troubles.lines()) or "it is empty"
        return f"nothing in {self.path} can be replayed as {self.source.format.name}: {why}"


def _nothing_comes() -> bool:
    return False
