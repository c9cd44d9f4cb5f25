# SPDX-License-Identifier: Apache-2.0
"""From a path to verdicts: the log is read once, piece by piece, by all profiles together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from math import isfinite
from pathlib import Path

from training_exporter.detectors import Options
from training_exporter.replay.columns import JUDGED, STEP, Columns
from training_exporter.replay.following import Following
from training_exporter.replay.formats import NotYetError
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


def _say_nothing(_: str) -> None:
    """For a run that is over."""


def _needed_at_once(names: Mapping[str, str]) -> Mapping[str, str]:
    """Names without which a log cannot be judged from its beginning; others may come later, as that
    of the first evaluation."""
    return {signal: name for signal, name in names.items() if signal in (STEP, *JUDGED)}


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
        wait: follows a run that goes on: waits for more to be logged, False when no more is to be
            waited for. None reads what is there.
        say: tells the user of a run that is followed what is waited for, and where it goes on.

    Attributes:
        plan: how.
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

    def __init__(
        self,
        path: Path,
        plan: Plan,
        wait: Callable[[], bool] | None = None,
        say: Callable[[str], object] = _say_nothing,
    ) -> None:
        self.path = path
        self.course = Course()
        self.plan = plan
        if wait is None:
            self._look(going_on=False)
            self._records = self.source.records(self.troubles)
        else:
            self._wait_for_beginning(wait, say)
            self._records = self.source.follow(self.troubles, Following(wait, say))
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
        rows = Rows(self.columns, self.troubles, self.plan.clip_threshold)
        yield from rows.events(self._records)
        for name in self.columns.awaited:
            self.troubles.note("name(|s) of --map that no value has", repr(name))

    def _wait_for_beginning(self, wait: Callable[[], bool], say: Callable[[str], object]) -> None:
        """Look until there is something to go by.

        Raises:
            ReplayError: nothing that can be replayed will come, or no more is to be waited for.
        """
        said = ""
        while (missing := self._missing()) is not None:
            if str(missing) != said:
                said = str(missing)
                say(f"Waiting: {said}.")
            if not wait():
                raise missing

    def _missing(self) -> NotYetError | None:
        """Look what lies there, and say what it lacks."""
        try:
            self._look(going_on=True)
        except NotYetError as missing:
            return missing
        return None

    def _look(self, *, going_on: bool) -> None:
        """Find out what lies there, and by its first records what is what.

        Raises:
            NotYetError: there is too little; more may come.
            ReplayError: nothing that can be replayed.
        """
        self.troubles = Troubles()
        self.source: Source = find_source(self.path, self.troubles, going_on=going_on)
        if going_on and self.source.is_archive:
            raise ReplayError(f"an archive does not grow, so it is not followed: {self.path}")
        beginning = self._beginning()
        self.columns = self._columns_of(beginning)
        self.stride = self._usual_stride(beginning)
        few = len(beginning) < BEGINNING
        if going_on and few and self.stride is None and STEP in self.columns.names:
            raise NotYetError(f"{self.path} has no two rows so far")

    def _beginning(self) -> list[Record]:
        """The first records; they are read again when it is played.

        Raises:
            NotYetError: there are none.
        """
        # What is wrong is noted when it is played.
        troubles = Troubles()
        try:
            source = Source(self.source.format, self.source.paths)
            found = list(islice(filter(None, source.records(troubles)), BEGINNING))
        except FileNotFoundError as error:
            raise NotYetError(f"{error.filename} is gone") from None
        if not found:
            raise NotYetError(self._nothing(troubles))
        return found

    def _columns_of(self, beginning: list[Record]) -> Columns:
        """What is called what.

        Raises:
            NotYetError: not all that is needed is in these few records.
            ReplayError: it is not in the log.
        """
        names = dict(self.plan.names)
        if self.source.format.step is not None:
            names.setdefault(STEP, self.source.format.step)
        columns = Columns(names)
        columns.learn_all(beginning)
        is_whole = len(beginning) < BEGINNING
        chosen = self.plan.names if is_whole else _needed_at_once(self.plan.names)
        try:
            columns.require_chosen(chosen, beginning)
            columns.require_something(beginning)
        except ReplayError as error:
            if is_whole:
                raise NotYetError(str(error)) from None
            raise
        self._leave_out_false_steps(columns, beginning)
        return columns

    def _leave_out_false_steps(self, columns: Columns, beginning: list[Record]) -> None:
        """Have rows counted where what is called a step is none.

        Raises:
            ReplayError: the user said that it is one.
        """
        why = columns.why_no_step(beginning)
        if not why:
            return
        if STEP in self.plan.names:
            raise ReplayError(f"{self.plan.names[STEP]!r} is no step: {why}")
        del columns.names[STEP]
        self.troubles.note(f"step column that is not used, as {why}")

    def _usual_stride(self, beginning: list[Record]) -> int | None:
        if STEP not in self.columns.names:
            return None
        return usual_stride(Rows(self.columns, Troubles()).events(beginning))

    def _nothing(self, troubles: Troubles) -> str:
        why = "; ".join(troubles.lines()) or "it is empty"
        return f"nothing in {self.path} can be replayed as {self.source.format.name}: {why}"
