# SPDX-License-Identifier: Apache-2.0
"""What a script that has not set up logging sees of the exporter's log."""

from __future__ import annotations

import logging
import sys

LOGGER_NAME = "training_exporter"


class FallbackHandler(logging.Handler):
    """Prints records, with time, the exporter's name and level, and on lines of their own, while
    nobody else does.

    Python's own last resort prints a warning without saying who warns or when, and behind whatever
    progress bar is on the line, and prints no address at all.
    """

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(
            logging.Formatter(
                "%(asctime)s training-exporter %(levelname)s: %(message)s", "%Y-%m-%d %H:%M:%S"
            )
        )

    def emit(self, record: logging.LogRecord) -> None:
        others = [*logging.getLogger(LOGGER_NAME).handlers, *logging.getLogger().handlers]
        if others == [self]:
            sys.stderr.write(f"\n{self.format(record)}\n")


def install_fallback() -> None:
    """Give the exporter's logger the fallback, unless it has it already."""
    logger = logging.getLogger(LOGGER_NAME)
    if not any(isinstance(handler, FallbackHandler) for handler in logger.handlers):
        logger.addHandler(FallbackHandler())
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)  # at which the address is said once, and little else
