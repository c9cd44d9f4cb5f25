# SPDX-License-Identifier: Apache-2.0
"""What the time inside a step went to, as the device that does the work sees it."""

from __future__ import annotations

from collections import deque
from time import perf_counter
from types import TracebackType
from typing import Any, Final, NamedTuple, Protocol

EXPORTER: Final = "exporter"
"""A phase beside catalog.COMPUTE_PHASES: our own work, which is taken off the phase around it."""
FORWARD: Final = "forward"
"""A phase inside catalog.FORWARD_BACKWARD, which it is a part of."""
MEETING: Final = "meeting"
"""A phase inside FORWARD: a wait for other ranks, which is not a part of it."""


class Marks(Protocol):
    """Marks in the work of one device. Tests put a device here whose marks come late.

    Attributes:
        immediate: whether a mark has passed as soon as it is made.
    """

    immediate: bool

    def mark(self) -> Any | None:
        """Mark this point; None when that is not possible now, and nothing was done."""
        ...

    def elapsed(self, start: Any, end: Any) -> float | None:
        """Seconds between two marks, None while the device has not passed both. Never waits."""
        ...

    def wait(self, mark: Any) -> None:
        """Wait until the device has passed a mark."""
        ...

    def release(self, mark: Any) -> None:
        """The mark is not needed any more."""
        ...


class HostMarks:
    """The wall clock of the host, which is the device of a training on the CPU."""

    immediate = True

    def __init__(self) -> None:
        self.mark = perf_counter

    def elapsed(self, start: float, end: float) -> float:
        return end - start

    def wait(self, mark: float) -> None:
        pass

    def release(self, mark: float) -> None:
        pass


class PhaseTimes(NamedTuple):
    """Seconds of a step by phase; a phase that it did not have is not in it."""

    step: int
    seconds: dict[str, float]


class _Step:
    """Attributes: number, once it has ended; seconds so far; stretches that have not arrived;
    whether a stretch is missing for good."""

    __slots__ = ("number", "outstanding", "seconds", "spoilt")

    def __init__(self) -> None:
        self.number = 0
        self.seconds: dict[str, float] = {}
        self.outstanding = 0
        self.spoilt = False


class _Stretch(NamedTuple):
    """A part of a phase, from one mark to the next.

    `end` is None where no mark could be made. An end that is no start of another stretch is `last`.
    """

    step: _Step
    phase: str
    start: Any
    end: Any | None
    last: bool


class PhaseClock:
    """Adds up the phases of one step after another, from one thread.

    A phase may come several times in a step, as the forward pass of each micro-batch does, and its
    times are summed. Inside another phase it takes its time away from that one. Time outside of all
    phases belongs to none.

    A step of which a mark could not be made has no times, since they would be too short: when the
    device is so far behind that no mark is free, or while a CUDA graph is being captured.

    Args:
        marks: how the device tells the time; the host's wall clock by default.
        steps: steps that may be outstanding or not yet collected; beyond it they are dropped.

    Attributes:
        dropped: steps without times.
        immediate: whether it goes by the host, so that time on the host is what it sees.
    """

    def __init__(self, marks: Marks | None = None, *, steps: int = 64) -> None:
        self.dropped = 0
        self._marks: Marks = marks or HostMarks()
        self.immediate = self._marks.immediate
        self._limit = steps
        self._open: list[str] = []
        self._last: Any = None
        self._current = _Step()
        self._outstanding: deque[_Stretch] = deque()
        self._closed: deque[_Step] = deque()

    def begin(self, phase: str) -> bool:
        """Begin a phase; False, and nothing else, when it is open already."""
        if phase in self._open:
            return False
        self._turn(last=False)
        self._open.append(phase)
        return True

    def end(self, phase: str) -> None:
        """End a phase and those left open inside it. Harmless when it is not open."""
        if phase not in self._open:
            return
        inside = self._open.index(phase)
        self._turn(last=not inside)
        del self._open[inside:]

    def inside(self, phase: str) -> _Inside:
        """`with clock.inside(phase): ...`; part of the outer one when it is open already."""
        return _Inside(self, phase)

    def lap(self, step: int) -> None:
        """End a step, and with it the phases that are open."""
        if self._open:
            self.end(self._open[0])
        current, self._current = self._current, _Step()
        if current.spoilt or len(self._closed) >= self._limit:
            self.dropped += 1
            return
        current.number = step
        self._closed.append(current)

    def discard(self) -> None:
        """Forget the step that has not ended, and close its phases."""
        if self._open and self._last is not None:
            self._note(None, last=True)
        self._open.clear()
        self._last = None
        self._current = _Step()

    def completed(self) -> list[PhaseTimes]:
        """Steps whose times have arrived since the last call, in order. Never waits."""
        self._collect()
        done = []
        while self._closed and not self._closed[0].outstanding:
            step = self._closed.popleft()
            done.append(PhaseTimes(step.number, step.seconds))
        return done

    def flush(self) -> list[PhaseTimes]:
        """All steps that ended. Waits for the device: for the end of training only."""
        for stretch in reversed(self._outstanding):
            if stretch.end is not None:
                self._marks.wait(stretch.end)
                break
        return self.completed()

    def _turn(self, *, last: bool) -> None:
        """From here on the time belongs to another phase, or to none when this was the last."""
        mark = None if self._current.spoilt else self._mark()
        if self._open and self._last is not None:
            self._note(mark, last=last)
        self._last = None if last else mark

    def _mark(self) -> Any | None:
        mark = self._marks.mark()
        if mark is None:
            self._collect()  # which may free some
            mark = self._marks.mark()
        self._current.spoilt = mark is None
        return mark

    def _note(self, mark: Any | None, *, last: bool) -> None:
        """The innermost open phase lasted from the last mark until this one."""
        step, phase, marks = self._current, self._open[-1], self._marks
        if not marks.immediate:
            step.outstanding += 1
            self._outstanding.append(_Stretch(step, phase, self._last, mark, last))
        elif mark is not None:
            seconds = marks.elapsed(self._last, mark) or 0.0
            step.seconds[phase] = step.seconds.get(phase, 0.0) + seconds

    def _collect(self) -> None:
        """Add up the stretches that have arrived, oldest first, and stop at one that has not."""
        marks, outstanding = self._marks, self._outstanding
        while outstanding:
            step, phase, start, end, last = outstanding[0]
            seconds = marks.elapsed(start, start if end is None else end)
            if seconds is None:
                return
            outstanding.popleft()
            step.outstanding -= 1
            step.seconds[phase] = step.seconds.get(phase, 0.0) + seconds
            marks.release(start)
            if last and end is not None:
                marks.release(end)


class _Inside:
    __slots__ = ("_began", "_clock", "_phase")

    def __init__(self, clock: PhaseClock, phase: str) -> None:
        self._clock = clock
        self._phase = phase
        self._began = False

    def __enter__(self) -> None:
        self._began = self._clock.begin(self._phase)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._began:
            self._clock.end(self._phase)
