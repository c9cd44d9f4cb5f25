# SPDX-License-Identifier: Apache-2.0
"""A black box is read, shown to a person, or refused in one line; whatever is in the file."""

from __future__ import annotations

from contextlib import suppress
from math import nan
from pathlib import Path
from random import Random

import pytest
from typer.testing import CliRunner, Result

from training_exporter import StepSignals, TrainingExporter, catalog, cli
from training_exporter.lifecycle.blackbox_format import (
    FILE_SIZE,
    MAGIC,
    STEP_SIZE,
    STEPS_AT,
    SUMS_AT,
    TEXT_SIZE,
    TEXTS_AT,
)
from training_exporter.lifecycle.blackbox_reader import Box, BoxError, last_seen, read_box
from training_exporter.lifecycle.blackbox_text import described

BEGAN = 1.7e9


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The box of a process that was killed after its 30th step."""
    watched = TrainingExporter(
        run="a run", serve=False, gpu_metrics=False, blackbox_dir=str(tmp_path), clock=lambda: BEGAN
    )
    watched.set_state(catalog.RUNNING)
    for step in range(1, 31):
        loss = nan if step == 29 else 2.0
        signals = StepSignals(step, BEGAN + step, loss, 0.5, learning_rates={"0": 1e-3})
        signals.tokens, signals.step_seconds = 100.0, 0.25
        watched.observe(signals)
    with watched.saving():
        pass
    watched._recollection.close()  # as when the process is gone
    (path,) = tmp_path.iterdir()
    return path


def overwrite(path: Path, at: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(content)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, ["blackbox", *arguments], env={"COLUMNS": "160"})


def test_a_step_that_is_torn_is_left_out(path: Path) -> None:
    """What the state says to have been counted, was counted."""
    overwrite(path, STEPS_AT + 30 * STEP_SIZE + 40, b"torn")
    box = read_box(path)

    assert (box.step, box.counters.totals.steps, box.torn) == (29, 30, 1)


def test_of_two_states_the_one_that_is_whole_is_taken(path: Path) -> None:
    """And what was counted after it is counted again from the steps."""
    for slot in (0, 1):
        content = path.read_bytes()
        overwrite(path, TEXTS_AT + slot * TEXT_SIZE + 20, b"torn")
        box = read_box(path)
        path.write_bytes(content)

        assert box.torn == 1
        assert box.counters.totals.steps == 30
        assert box.counters.totals.non_finite_losses == 1


def test_without_any_state_there_is_nothing_to_tell(path: Path) -> None:
    """Whose counters would it be?"""
    overwrite(path, TEXTS_AT, b"torn" * (2 * TEXT_SIZE // 4))

    with pytest.raises(BoxError, match="damaged: nothing in it is whole"):
        read_box(path)


def test_whatever_is_in_the_file_it_is_a_box_or_an_error(path: Path) -> None:
    """Of our own, in one line."""
    whole, random = path.read_bytes(), Random(0)
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(random.randrange(1, 6)):
            at = random.choice([0, 8, TEXTS_AT, SUMS_AT, STEPS_AT]) + random.randrange(64)
            content[at] = random.randrange(256)
        path.write_bytes(content[: random.choice([None, random.randrange(FILE_SIZE)])])
        with suppress(BoxError):
            assert isinstance(read_box(path), Box)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "nothing was written"),
        (b"{}", "no black box"),
        (b"\x80" * FILE_SIZE, "no black box"),
        (MAGIC[:-1] + b"\xff" + b"x" * FILE_SIZE, "another version"),
        (MAGIC + b"x" * TEXTS_AT, "cut off"),
    ],
)
def test_a_file_that_cannot_be_shown_is_a_line_and_an_exit_code(
    tmp_path: Path, content: bytes, why: str
) -> None:
    """So that a script can tell."""
    path = tmp_path / "x.blackbox"
    path.write_bytes(content)
    result = run(str(path))

    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert f"Error: {path}: " in result.stderr
    assert why in result.stderr


@pytest.mark.parametrize("what", ["missing", "folder"])
def test_no_file_is_a_line_too(tmp_path: Path, what: str) -> None:
    """A name typed wrong, or the folder instead of what is in it."""
    (tmp_path / "folder").mkdir()
    result = run(str(tmp_path / what))

    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1


def test_one_that_cannot_be_read_does_not_hide_the_others(path: Path) -> None:
    """`training-exporter blackbox *` shows what there is."""
    result = run(f"{path}.missing", str(path))

    assert result.exit_code == 2
    assert "Run a run, rank 0" in result.stdout


def test_a_person_is_told_how_it_ended(path: Path) -> None:
    """And where, and with what."""
    output = run(str(path)).stdout

    assert "Run a run, rank 0: ended without a word while running" in output
    assert "killed (SIGKILL, SIGTERM, out of memory), or its machine went down" in output
    assert "steps: 30" in output
    assert "tokens: 3000" in output
    assert "non_finite at step 29, 2023-11-14 22:13:49 UTC" in output
    assert "The last 20 steps" in output
    rows = [line.split() for line in output.splitlines() if line.strip().startswith(("29 ", "30 "))]
    assert rows == [
        ["29", "22:13:49", "UTC", "NaN", "0.5", "0.001", "0.25", "100"],
        ["30", "22:13:50", "UTC", "2", "0.5", "0.001", "0.25", "100"],
    ]


def test_more_and_fewer_steps_can_be_shown(path: Path) -> None:
    """Down to none, for a glance at many files."""
    assert "The last 30 steps" in run("--steps", "200", str(path)).stdout
    assert "learning rate" not in run("--steps", "0", str(path)).stdout


@pytest.mark.parametrize(
    ("changes", "headline"),
    [
        ({"state": catalog.COMPLETED}, "completed"),
        ({"state": catalog.CRASHED, "failure": "ValueError"}, "crashed with ValueError"),
        ({"lives": True}, "running now"),
        ({"lives": None}, "running when it was last written"),
        ({"state": catalog.SAVING}, "ended without a word while saving"),
    ],
)
def test_the_end_in_a_few_words(path: Path, changes: dict[str, object], headline: str) -> None:
    """What is known of it, and no more."""
    box = read_box(path)._replace(**changes)  # type: ignore[arg-type]

    assert described(box, now=BEGAN).startswith(f"# Run `a run`, rank 0: {headline}\n")


@pytest.mark.parametrize(
    ("seconds", "ago"), [(0, "0 s"), (119, "119 s"), (7000, "117 minutes"),
                         (1e5, "28 hours"), (1e6, "12 days")],
)  # fmt: skip
def test_the_log_says_how_long_ago_that_was(path: Path, seconds: float, ago: str) -> None:
    """Days for one found on an old disk."""
    box = read_box(path)

    assert f"{ago} ago" in last_seen(box, box.written + seconds)
