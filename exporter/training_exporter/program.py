# SPDX-License-Identifier: Apache-2.0
"""How a person at a shell calls our command line."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from shlex import quote
from typing import Final

NAME: Final = "training-exporter"


def program() -> str:
    """What to type for it: its name if the shell finds it by that, else its path, from the working
    directory if it is below.

    It is the program that runs, or in somebody's own program the one beside their interpreter, of
    whose environment we are. The name where there is neither.
    """
    own = Path(sys.argv[0] if sys.argv else "")
    if own.stem != NAME:
        own = Path(sys.executable).with_name(NAME)
    found = shutil.which(NAME)
    if not own.is_file() or (found is not None and Path(found).samefile(own)):
        return NAME
    path, here = own.absolute(), Path.cwd()
    # A name without a slash would be looked up on PATH.
    below = here in path.parent.parents
    return quote(str(path.relative_to(here) if below else path))
