# SPDX-License-Identifier: Apache-2.0
"""Where the threads of this process stand, for a person whose training does not get on.

Files, lines and functions, and no values of variables. No source is read either: what the training
waits for may be the very file system that it lies on.
"""

from __future__ import annotations

import sys
import sysconfig
import threading
from collections.abc import Iterator
from functools import lru_cache
from html import escape
from itertools import islice
from pathlib import Path, PurePath
from types import FrameType
from typing import Final, NamedTuple

INNERMOST: Final = 2
"""Frames that the page names, beside the innermost one of the user's own code."""
MAX_FRAMES: Final = 100
"""As faulthandler has it; a recursion that went astray has a thousand."""

_OWN_FOLDER = str(Path(__file__).parent.parent)


class Frame(NamedTuple):
    """A call that has not returned."""

    file: str
    line: int
    function: str

    @property
    def short(self) -> str:
        """The end of its path, and the rest."""
        return f"{'/'.join(PurePath(self.file).parts[-2:])}:{self.line} {self.function}"


def frames_of(thread: int) -> list[Frame]:
    """The calls of a thread, the innermost first; none when there is no such thread any more."""
    return list(_calls(sys._current_frames().get(thread)))


def _calls(frame: FrameType | None) -> Iterator[Frame]:
    while frame is not None:
        code = frame.f_code
        yield Frame(code.co_filename, frame.f_lineno or code.co_firstlineno, code.co_name)
        frame = frame.f_back


def whereabouts(thread: int | None) -> str:
    """As HTML, where the thread that trains stands; nothing when it is unknown which one that is.

    Args:
        thread: its identifier.
    """
    if thread is None:
        return ""
    frames = frames_of(thread)
    if not frames:
        return "The thread that trained has ended."
    shown = frames[:INNERMOST]
    shown += list(islice((frame for frame in frames[INNERMOST:] if _is_users(frame.file)), 1))
    calls = ", called by ".join(f"<code>{escape(frame.short)}</code>" for frame in shown)
    return f"The training thread stands in {calls}."


def _is_users(file: str) -> bool:
    """Whether a file is neither Python's, nor installed, nor ours."""
    return not file.startswith(("<frozen", _OWN_FOLDER, *_installed()))


@lru_cache(1)
def _installed() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    return tuple({paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")})


def dump(training_thread: int | None) -> str:
    """All threads with their names and calls, the innermost first, as text.

    Args:
        training_thread: the identifier of the one that trains, None when that is unknown.
    """
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts = []
    for ident, frame in sys._current_frames().items():
        note = " (trains)" if ident == training_thread else ""
        calls = list(islice(_calls(frame), MAX_FRAMES + 1))
        lines = [
            f'  File "{call.file}", line {call.line}, in {call.function}'
            for call in calls[:MAX_FRAMES]
        ]
        lines += ["  ..."] if len(calls) > MAX_FRAMES else []
        parts.append("\n".join([f"{names.get(ident, '?')} {ident}{note}", *lines]))
    return "Innermost calls first.\n\n" + "\n\n".join(parts)
