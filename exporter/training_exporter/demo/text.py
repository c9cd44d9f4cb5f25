# SPDX-License-Identifier: Apache-2.0
"""Real text that is on every machine: the sources of Python's standard library, byte by byte."""

from __future__ import annotations

import random
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from time import sleep

import torch
from torch.utils.data import Dataset

from training_exporter.demo.plan import DemoError

VOCABULARY_SIZE = 256
"""A token is a byte of UTF-8."""
WINDOW = 64
"""Tokens in a row."""
TRAINING_BYTES = 4_000_000
EVALUATION_BYTES = 8_192
ENOUGH_BYTES = 100_000
_LEFT_OUT = frozenset({"site-packages", "dist-packages", "test", "tests", "idlelib", "encodings"})
"""Other people's packages, and files that are odd on purpose: tests and tables of characters."""


class TextWindows(Dataset[dict[str, torch.Tensor]]):
    """Text cut into rows of equal length.

    Attributes:
        read_seconds: how long each row takes to be read, beyond what it really takes.
    """

    def __init__(self, text: bytes, *, read_seconds: float = 0.0) -> None:
        rows = len(text) // WINDOW
        tokens = torch.frombuffer(bytearray(text[: rows * WINDOW]), dtype=torch.uint8)
        self._rows = tokens.view(rows, WINDOW)
        self.read_seconds = read_seconds

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if self.read_seconds:
            sleep(self.read_seconds)
        tokens = self._rows[index].long()
        return {"input_ids": tokens, "labels": tokens}


def library_text(seed: int, root: Path | None = None) -> tuple[TextWindows, TextWindows]:
    """Text to train on and text to evaluate on, from different files; the same for a seed.

    Args:
        seed: decides which files, and in which order.
        root: folder of the sources, None is the standard library's.

    Raises:
        DemoError: there are no sources, or next to none.
    """
    root = root or Path(sysconfig.get_paths()["stdlib"])
    paths = list(_sources(root))
    random.Random(seed).shuffle(paths)  # noqa: S311 - an order, not a secret
    held_out = paths[: len(paths) // 10]
    training = _joined(paths[len(held_out) :], TRAINING_BYTES)
    evaluation = _joined(held_out, EVALUATION_BYTES)
    if len(training) < ENOUGH_BYTES or len(evaluation) < EVALUATION_BYTES:
        raise DemoError(
            f"the demo trains on the sources of Python's standard library, and {root} has next to"
            " none; run it with a Python that ships them"
        )
    return TextWindows(training), TextWindows(evaluation)


def _sources(root: Path) -> Iterator[Path]:
    """The files of a library in an order that does not depend on the file system."""
    for path in sorted(root.rglob("*.py")):
        if not _LEFT_OUT.intersection(path.relative_to(root).parts):
            yield path


def _joined(paths: Iterable[Path], most: int) -> bytes:
    """The contents of files, one after the other, up to a number of bytes."""
    text = bytearray()
    for path in paths:
        if len(text) >= most:
            break
        text += path.read_bytes()
    return bytes(text[:most])
