# SPDX-License-Identifier: Apache-2.0
"""One colour for each meaning, the same on every dashboard.

From the palette of Okabe and Ito ("Color Universal Design", 2008), which people with any of the
common colour deficiencies can tell apart, and which can be seen on a light page and on a dark one.
Red is for what is bad, and is nowhere the only sign of it.
"""

from __future__ import annotations

from typing import Final

_BLUE: Final = "#0072B2"
_SKY: Final = "#56B4E9"
_GREEN: Final = "#009E73"
_ORANGE: Final = "#E69F00"
_PURPLE: Final = "#CC79A7"
_GREY: Final = "#8E8E8E"
_RED: Final = "#DC3220"

BAD: Final = _RED
WARNING: Final = _ORANGE
AT_WORK: Final = _BLUE
DONE: Final = _GREEN
QUIET: Final = _GREY
NEUTRAL: Final = "text"
"""The colour of text in the reader's own theme."""

LIMIT: Final = _RED
"""A bound that should not be reached; always a dashed line."""

TRAIN_LOSS: Final = _BLUE
TRAIN_LOSS_RAW: Final = _SKY
EVAL_LOSS: Final = _ORANGE
LEARNING_RATE: Final = _GREEN
GRADIENT: Final = _PURPLE
GRADIENT_RAW: Final = "#E3B7CF"
THROUGHPUT: Final = _SKY
COMPUTE: Final = _BLUE
OPTIMIZER: Final = _SKY
WAITING: Final = _ORANGE
PAUSE: Final = _GREY

LEAST: Final = _SKY
MIDDLE: Final = _BLUE
MOST: Final = _ORANGE
"""Of several ranks, layers or GPUs: the least, the mean and the most."""

USED: Final = _BLUE
ALLOCATED: Final = _GREEN
RESERVED: Final = _SKY
PEAK: Final = _ORANGE
HEAT: Final = _ORANGE
POWER: Final = _PURPLE
