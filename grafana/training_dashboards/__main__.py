# SPDX-License-Identifier: Apache-2.0
"""`python -m training_dashboards [FOLDER]`: write all dashboards, by default where they belong."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from training_dashboards.build import write
from training_dashboards.every import DASHBOARDS

HOME: Final = Path(__file__).parents[1] / "dashboards"


def main(arguments: list[str]) -> None:
    """Write the files and say where."""
    folder = Path(arguments[0]) if arguments else HOME
    for path in write(DASHBOARDS, folder):
        print(path)


if __name__ == "__main__":
    main(sys.argv[1:])
