# SPDX-License-Identifier: Apache-2.0
"""Logs of runs that go on: what is written next, in the same file or in one that follows on it."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from training_exporter.replay.stream import Stream
from training_exporter.replay.text_logs import Record
from training_exporter.replay.trouble import Troubles

Reader = Callable[[Stream, Troubles], Iterator[Record]]


@dataclass(frozen=True)
class Following:
    """How to go on where a log ends.

    Attributes:
        wait: waits a little for more to be written; False when no more is to be waited for.
        say: tells the user.
    """

    wait: Callable[[], bool]
    say: Callable[[str], object]


def read_whole(path: Path, read: Reader, troubles: Troubles) -> Iterator[Record]:
    """The records of a file as far as it goes now."""
    stream = Stream(path)
    try:
        yield from read(stream, troubles)
    finally:
        stream.close()


class Fresh:
    """Hands on, of a log that is written anew, what is not as it was before.

    Loggers that learn a new column write the same rows again, and a Trainer's state has all that
    was logged since the run began. Of each record eight bytes are kept.
    """

    def __init__(self) -> None:
        self._known = array("q")

    def of(self, records: Iterable[Record]) -> Iterator[Record]:
        """The records from the first one on that is not the one that stood there."""
        known = self._known
        place = 0
        for record in records:
            if record:
                mark = hash(repr(record))
                place += 1
                if place <= len(known):
                    if known[place - 1] == mark:
                        continue
                    del known[place - 1 :]
                known.append(mark)
            yield record


def follow_growing(
    path: Path,
    later: Callable[[], Path | None],
    read: Reader,
    troubles: Troubles,
    following: Following,
) -> Iterator[Record]:
    """The records of a file to which they are added, and then of those that follow on it.

    Args:
        path: the file.
        later: the file that was begun after all that it has named, None while there is none.
        read: reads such files.
        troubles: takes what is wrong.
        following: how to go on.
    """
    fresh = Fresh()
    while True:
        end = _End(later, following.wait)
        try:
            stream = Stream(path, end.wait)
        except FileNotFoundError:  # it was just deleted, and may come again
            end.replaced = path.exists
            end.wait_for()
        else:
            end.replaced = stream.replaced
            try:
                yield from fresh.of(read(stream, troubles))
                if not end.reached:
                    following.say(f"{path} is damaged; waiting for what comes after it.")
                    end.wait_for()
            finally:
                stream.close()
        if end.successor is not None:
            path, fresh = end.successor, Fresh()
            following.say(f"The log goes on in {path}.")
        elif end.anew:
            following.say(f"{path} was begun anew.")
        else:
            return


class _End:
    """The end of a file: whether to wait there.

    Attributes:
        replaced: whether the file is no longer the one that is written.
        reached: whether no more comes.
        successor: the file that follows on it.
        anew: whether the file was begun anew.
    """

    def __init__(self, later: Callable[[], Path | None], wait: Callable[[], bool]) -> None:
        self.replaced: Callable[[], bool] = bool
        self.reached = False
        self.successor: Path | None = None
        self.anew = False
        self._later = later
        self._wait = wait

    def wait(self) -> bool:
        """Wait for more; False when there is none."""
        if self.reached or self._is_over():
            self.reached = True
            return False
        self._look()
        if not self._is_over():
            if not self._wait():
                self.reached = True
                return False
            # What is there now is not the rest of what was read, if the file was begun anew.
            self._look()
        # Also if it is over: what was written before that is still to be read.
        return True

    def wait_for(self) -> None:
        """Wait for it where nothing more can be read: behind a damage, or of no file."""
        while self.wait():
            pass

    def _is_over(self) -> bool:
        return self.anew or self.successor is not None

    def _look(self) -> None:
        self.anew = self.replaced()
        if not self.anew:
            self.successor = self._later()


def follow_rewritten(
    newest: Callable[[], Path],
    read: Reader,
    troubles: Troubles,
    following: Following,
) -> Iterator[Record]:
    """The records of a file that is written as a whole each time, as they are added to it.

    After those of a file comes an empty record: nothing more belongs to the last one.

    Args:
        newest: the file as it is now, which may be another one each time.
        read: reads such files.
        troubles: takes what is wrong with a file that stays as it is. One that is read while it is
            written is cut off, too, and is read again.
        following: how to go on.
    """
    fresh = Fresh()
    seen: object = None
    doubtful = False
    while True:
        try:
            path = newest()
            state = path.stat()
            now = (path, state.st_ino, state.st_mtime_ns, state.st_size)
            if doubtful or now != seen:
                found = troubles if now == seen else Troubles()
                yield from fresh.of(read_whole(path, read, found))
                yield {}
                doubtful, seen = now != seen and bool(found.lines()), now
        except FileNotFoundError:
            pass  # a checkpoint was deleted, and there is another one or soon will be
        if not following.wait():
            return
