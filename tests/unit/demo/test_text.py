# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
import torch

from training_exporter.demo import text
from training_exporter.demo.plan import DemoError
from training_exporter.demo.text import TextWindows, library_text


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A library of 40 files that differ, 8 kB each."""
    for number in range(40):
        (tmp_path / f"module_{number:02}.py").write_text(f"# file {number:02}\n" * 800)
    return tmp_path


def as_text(windows: TextWindows) -> str:
    rows = [windows[index]["input_ids"] for index in range(len(windows))]
    return bytes(torch.cat(rows).tolist()).decode()


def files_in(windows: TextWindows) -> set[str]:
    return {line for line in as_text(windows).split("\n") if line.startswith("# file ")}


def test_a_row_is_bytes_to_be_predicted() -> None:
    """Labels are the inputs: the model shifts them itself."""
    windows = TextWindows("é = 1\n".encode() * 64)

    row = windows[0]

    assert row["input_ids"].tolist()[:4] == [0xC3, 0xA9, 0x20, 0x3D]
    assert row["input_ids"].shape == (text.WINDOW,)
    assert torch.equal(row["input_ids"], row["labels"])


def test_what_does_not_fill_a_row_is_left_out() -> None:
    """All rows are of one length, so that a batch needs no padding."""
    assert len(TextWindows(b"x" * (3 * text.WINDOW - 1))) == 2


def test_the_same_seed_gives_the_same_text(library: Path) -> None:
    """A run can be repeated; another seed is another run."""
    first, again, other = (library_text(seed, library)[0] for seed in (1, 1, 2))

    assert as_text(first) == as_text(again)
    assert as_text(first) != as_text(other)


def test_evaluation_is_on_other_files(library: Path) -> None:
    """Text held out is text not trained on."""
    training, evaluation = library_text(0, library)

    assert evaluation
    assert not files_in(training) & files_in(evaluation)


def test_tests_and_other_peoples_packages_are_left_out(library: Path) -> None:
    """A site-packages folder differs from machine to machine."""
    before = as_text(library_text(0, library)[0])
    for folder in ("site-packages", "test"):
        (library / folder).mkdir()
        (library / folder / "odd.py").write_bytes(b"\xff" * 50_000)

    assert as_text(library_text(0, library)[0]) == before


def test_a_python_without_sources_is_told(tmp_path: Path) -> None:
    """Some images strip them; the message says what is wanted."""
    (tmp_path / "lonely.py").write_text("x = 1\n")

    with pytest.raises(DemoError, match="next to none"):
        library_text(0, tmp_path)


def test_the_library_of_this_python_is_enough() -> None:
    """Real text, a few megabytes of it."""
    training, evaluation = library_text(0)

    assert len(training) * text.WINDOW > 1_000_000
    assert len(evaluation) * text.WINDOW == text.EVALUATION_BYTES


def test_a_row_can_take_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the fault slow-data turns up."""
    slept: list[float] = []
    monkeypatch.setattr(text, "sleep", slept.append)

    TextWindows(b"x" * text.WINDOW, read_seconds=0.25)[0]

    assert slept == [0.25]
