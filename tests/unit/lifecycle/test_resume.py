# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from training_exporter.catalog import (
    RESUME_FOREIGN,
    RESUME_MISSING,
    RESUME_UNREADABLE,
    RESUME_WORLD_SIZE,
)
from training_exporter.detectors import robust_detectors
from training_exporter.lifecycle.resume import (
    FILE_NAME,
    MAX_BYTES,
    CannotResumeError,
    Resumption,
    launcher_restarts,
    read_state,
    write_state,
)
from training_exporter.monitor import TrainingMonitor
from training_exporter.signals import StepSignals
from training_exporter.status import ExporterHealth, RunStatus, StatusBoard


class Run:
    """A run with all its detectors, and what it would save."""

    def __init__(self, run: str = "r", rank: int = 0, world_size: int = 2, restarts: int = 0):
        info = MappingProxyType({"world_size": str(world_size)})
        self.board = StatusBoard(RunStatus(run, rank, info=info, restarts=restarts))
        self.monitor = TrainingMonitor(robust_detectors())
        self.health = ExporterHealth()
        self.resumption = Resumption(self.board, self.monitor, self.health)

    def train(self, first: int, last: int) -> Run:
        for step in range(first, last + 1):
            loss = 2.0 + 0.01 * (step % 3)
            self.monitor.observe(
                StepSignals(step, 1e9 + step, loss=loss, grad_norm=1.0, tokens=10.0, samples=2.0)
            )
        return self

    @property
    def state(self) -> dict[str, Any]:
        signals = self.monitor.snapshot.signals
        return self.resumption.state(signals.step if signals else 0)

    def take(self, state: Any, step: int | None = None) -> int | None:
        return self.resumption.go_on(lambda: state, step)

    def failures(self) -> dict[str, int]:
        return {reason: count for reason, count in self.health.resume_failures.items() if count}


def changed(state: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    return {**state, **changes}


def test_a_run_goes_on_as_if_nothing_had_been(
    tmp_path: Path, logs: pytest.LogCaptureFixture
) -> None:
    """Averages, curves and detectors are where they were, and the next step is no restart."""
    old, new = Run().train(1, 100), Run()
    old.resumption.save(tmp_path, 100)

    assert new.resumption.go_on(lambda: read_state(tmp_path), 100) == 100
    for each in (old, new):
        each.train(101, 140)

    ours, theirs = new.monitor.snapshot, old.monitor.snapshot
    assert (ours.loss_ema, ours.grad_norm_ema) == (theirs.loss_ema, theirs.grad_norm_ema)
    assert ours.history.points() == theirs.history.points()
    assert ours.run == theirs.run == (140.0, 1400.0, 280.0)
    assert [found.total for found in ours.anomalies] == [0] * len(ours.anomalies)
    assert new.failures() == {}
    assert "go on after step 100" in logs.text
    assert os.listdir(tmp_path) == [FILE_NAME]


def test_what_was_counted_is_not_brought_along() -> None:
    """A counter lower than the last one that was scraped would be a reset to Prometheus."""
    new = Run()
    new.take(Run().train(1, 100).state)

    assert new.monitor.snapshot.totals.steps == 0
    assert new.train(101, 110).monitor.snapshot.totals.tokens == 100.0


def test_other_ranks_know_their_steps_and_not_their_tokens() -> None:
    """What rank 0 saved of the run's steps holds for all; its tokens were its own."""
    other = Run(rank=1)
    other.take(Run().train(1, 100).state)

    assert other.train(101, 110).monitor.snapshot.run == (110.0, None, None)
    assert other.monitor.snapshot.loss_ema is not None
    assert other.failures() == {}


def test_restarts_are_counted_from_process_to_process() -> None:
    """In the state, or by the launcher where that knows of more; not within a process."""
    first = Run().train(1, 10)
    second = Run()
    second.take(first.state)
    third = Run()
    third.take(second.train(11, 20).state)
    told = Run(restarts=7)
    told.take(third.state)
    assert [run.board.status.restarts for run in (first, second, third, told)] == [0, 1, 2, 7]

    third.train(21, 30).take(third.state)
    assert third.board.status.restarts == 2


def test_going_back_within_a_process() -> None:
    """Steps that are trained twice are no restart, are counted twice, and their curve is cut."""
    run = Run().train(1, 60)
    saved = run.state
    run.train(61, 100)

    assert run.take(saved, 60) == 60
    assert run.monitor.snapshot.history.points()[-1].step == 60
    run.train(61, 120)

    assert run.monitor.snapshot.run.steps == 120.0
    assert run.monitor.snapshot.totals.steps == 160.0
    assert not any(found.total for found in run.monitor.snapshot.anomalies)


GOOD = Run().train(1, 100).state


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (changed(GOOD, run="another"), RESUME_FOREIGN),
        (changed(GOOD, step=90), RESUME_FOREIGN),
        (changed(GOOD, world_size=4), RESUME_WORLD_SIZE),
        (changed(GOOD, format=2), RESUME_UNREADABLE),
        (changed(GOOD, step="100"), RESUME_UNREADABLE),
        (changed(GOOD, levels=None), RESUME_UNREADABLE),
        (changed(GOOD, restarts=10**400), RESUME_UNREADABLE),
        (changed(GOOD, restarts=-1), RESUME_UNREADABLE),
        (changed(GOOD, levels={"loss_ema": [1]}), RESUME_UNREADABLE),
        (changed(GOOD, levels={"detectors": {"loss_spike": 3}}), RESUME_UNREADABLE),
        (changed(GOOD, levels={"history": {"points": [[1]]}}), RESUME_UNREADABLE),
        (changed(GOOD, levels={"history": {"points": [[1, "high", 2]]}}), RESUME_UNREADABLE),
        (changed(GOOD, levels={"run": {"steps": "many"}}), RESUME_UNREADABLE),
        ({}, RESUME_UNREADABLE),
        ([1, 2], RESUME_UNREADABLE),
        (None, RESUME_UNREADABLE),
    ],
)
def test_a_state_that_does_not_fit_is_warned_about_counted_and_left(
    state: Any, reason: str, logs: pytest.LogCaptureFixture
) -> None:
    """The run begins anew, and what went into its weights is not known."""
    run = Run()

    assert run.take(state, 100) is None
    run.train(101, 110)

    assert run.failures() == {reason: 1}
    assert run.monitor.snapshot.loss_ema == pytest.approx(2.01, abs=0.02)
    assert run.monitor.snapshot.run == (None, None, None)
    assert len(run.monitor.snapshot.history.points()) == 10
    assert run.board.status.restarts == 1
    assert [record.levelname for record in logs.records] == ["WARNING"]
    assert "averages and detectors as new" in logs.text


def test_one_rank_warns(logs: pytest.LogCaptureFixture) -> None:
    """A thousand times the same would hide all else."""
    other = Run(rank=3)
    other.take({})

    assert [record.levelname for record in logs.records] == ["INFO"]
    assert other.failures() == {RESUME_UNREADABLE: 1}


def test_what_is_no_file_of_ours_is_not_read(tmp_path: Path) -> None:
    """Nothing there, a broken one, a huge one, one nested without end, one that would block."""
    path = tmp_path / FILE_NAME

    def reason() -> str:
        with pytest.raises(CannotResumeError) as caught:
            read_state(tmp_path)
        return caught.value.reason

    assert reason() == RESUME_MISSING
    for content in (
        b"", b"{", b"\xff\xfe{}", json.dumps(GOOD).encode()[:-9], b'{"step":NaN}', b"[" * 200_000,
        json.dumps(GOOD).encode() + b" " * MAX_BYTES,
    ):  # fmt: skip
        path.write_bytes(content)
        assert reason() == RESUME_UNREADABLE, content[:20]
    path.unlink()
    os.mkfifo(path)
    assert reason() == RESUME_UNREADABLE
    path.unlink()
    path.mkdir()
    assert reason() == RESUME_UNREADABLE


def test_a_state_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    """What cannot be written leaves the last one as it was, and no rest of itself."""
    checkpoint = tmp_path / "checkpoint-1"
    checkpoint.mkdir()
    write_state(checkpoint, {"a": 1})

    for bad in ({"a": float("nan")}, {"a": object()}, {"a": "x" * MAX_BYTES}):
        with pytest.raises((ValueError, TypeError)):
            write_state(checkpoint, bad)
    with pytest.raises(OSError, match="No such file"):
        write_state(tmp_path / "checkpoint-2", {"a": 2})

    assert read_state(checkpoint) == {"a": 1}
    assert os.listdir(tmp_path) == ["checkpoint-1"]
    assert os.listdir(checkpoint) == [FILE_NAME]


def test_a_draft_is_in_nobodys_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in the checkpoint, which an upload may be listing; by a name that uploads leave out."""
    drafts: list[Path] = []
    original = Path.replace

    def replace(draft: Path, target: Path) -> Path:
        drafts.append(draft)
        return original(draft, target)

    monkeypatch.setattr(Path, "replace", replace)
    checkpoint = tmp_path / "checkpoint-1"
    checkpoint.mkdir()
    write_state(checkpoint, {})

    assert [draft.parent for draft in drafts] == [tmp_path]
    assert drafts[0].name.startswith("_")


def test_a_long_run_saves_little(tmp_path: Path) -> None:
    """Its state is bounded far below what is read."""
    Run().train(1, 5000).resumption.save(tmp_path, 5000)

    assert (tmp_path / FILE_NAME).stat().st_size < MAX_BYTES / 40


@pytest.mark.parametrize(
    ("environ", "restarts"),
    [
        ({}, 0),
        ({"TORCHELASTIC_RESTART_COUNT": "2"}, 2),
        ({"SLURM_RESTART_COUNT": "3", "TORCHELASTIC_RESTART_COUNT": "0"}, 3),
        ({"TORCHELASTIC_RESTART_COUNT": "-1", "SLURM_RESTART_COUNT": "x"}, 0),
    ],
)
def test_launchers_tell_how_often_they_started_a_run(
    environ: dict[str, str], restarts: int
) -> None:
    """So a run that dies before its first checkpoint is counted as well."""
    assert launcher_restarts(environ) == restarts
