# SPDX-License-Identifier: Apache-2.0
"""What is in a black box when its process dies, and how the next process goes on from it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from math import inf, nan
from pathlib import Path

import pytest

from training_exporter import StepSignals, TrainingExporter, catalog
from training_exporter.detectors.base import HEALTHY, Finding
from training_exporter.lifecycle import blackbox_file, blackbox_reader
from training_exporter.lifecycle.blackbox_format import KEPT_STEPS
from training_exporter.lifecycle.blackbox_reader import Box, read_box
from training_exporter.lifecycle.processes import Process, this_process
from training_exporter.signals import StepSignals as Signals
from training_exporter.status import ReportNote


@pytest.fixture(autouse=True)
def read_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who reads a box is another process than the one that wrote it."""
    reader = Process("a machine", 1, "1")
    monkeypatch.setattr(blackbox_reader, "this_process", lambda: reader)


class EveryThirtieth:
    """A detector that finds something on every thirtieth step."""

    kind = "thirtieth"

    def observe(self, signals: Signals) -> object:
        return Finding(1.0, 0.0) if signals.step % 30 == 0 else HEALTHY

    def state_dict(self) -> dict[str, object]:
        return {}

    def load_state_dict(self, state: object) -> None:
        pass


def exporter(
    folder: Path, run: str | None = "a run", *, calm: bool = False, **settings: object
) -> TrainingExporter:
    """One that serves nothing; a calm one finds nothing either."""
    return TrainingExporter(
        run=run, serve=False, gpu_metrics=False, blackbox_dir=str(folder),
        detectors=[] if calm else [EveryThirtieth()], **settings,
    )  # fmt: skip


def step(number: int) -> StepSignals:
    """A step of a run in which everything is counted."""
    return StepSignals(
        number, 1.7e9 + number, loss=nan if number % 11 == 0 else 2.0,
        grad_norm=inf if number % 13 == 0 else number % 3.0, clip_threshold=1.0,
        learning_rates={"0": 1e-3}, loss_scale=2.0 ** (16 - number % 5), skipped=number % 17 == 0,
        max_steps=10**6, tokens=100.0, samples=2.0, step_seconds=0.01 * (number % 40),
        data_wait_seconds=0.25, positions=128.0, flops=1e9,
    )  # fmt: skip


def train(exporter: TrainingExporter, steps: range) -> None:
    """Steps with everything in between that is counted too."""
    exporter.set_state(catalog.RUNNING)
    for number in steps:
        exporter.observe(step(number))
        exporter.observe_compute({catalog.FORWARD_BACKWARD: 0.5})
        if number % 7 == 0:
            with exporter.paused(catalog.LOGGING):
                pass
        if number % 25 == 0:
            with exporter.evaluating():
                pass


def box_of(folder: Path, name: str = "a_run-") -> Box:
    (path,) = folder.glob(f"{name}*.blackbox")
    return read_box(path)


def counted(exporter: TrainingExporter) -> dict[str, float]:
    """All counters that go on."""
    snapshot, status = exporter.snapshot, exporter.status
    return {
        **snapshot.totals._asdict(),
        **{f"bucket {place}": count for place, count in enumerate(snapshot.step_buckets)},
        **{found.kind: found.total for found in snapshot.anomalies},
        **status.pauses,
        **status.compute,
        "reports": status.reports,
    }


@pytest.mark.parametrize("calm", [True, False])
@pytest.mark.parametrize("steps", [1, 31, 100, 101, 557])
def test_the_next_process_counts_on_from_the_very_last_step(
    tmp_path: Path, steps: int, calm: bool
) -> None:
    """A restored counter that is a little too low would look like a reset. Without an anomaly the
    counts are in the box less often."""
    first = exporter(tmp_path, calm=calm)
    first.set_state(catalog.RUNNING)
    for number in range(1, steps + 1):
        first.observe(step(number))

    second = exporter(tmp_path, calm=calm)
    second.start()

    assert counted(second) == pytest.approx(counted(first))
    assert second.previous is not None
    assert second.previous.step == steps
    assert second.previous.state == catalog.RUNNING
    assert second.snapshot.signals is None


def test_pauses_and_the_time_of_the_device_go_on(tmp_path: Path) -> None:
    """They are counted between the steps."""
    first = exporter(tmp_path)
    train(first, range(1, 60))
    first.observe_report(ReportNote("loss", "NaN", None, True))

    second = exporter(tmp_path)
    second.start()

    assert counted(second) == pytest.approx(counted(first))
    assert second.status.reports == 1
    assert second.status.pauses[catalog.EVALUATION] > 0.0


def test_rates_are_those_of_this_process(tmp_path: Path) -> None:
    """What was counted before is no pace."""
    train(exporter(tmp_path), range(1, 50))
    second = exporter(tmp_path)
    second.start()
    second.observe(step(50))

    assert second.snapshot.totals.steps == 50
    assert second.snapshot.tokens_per_second == pytest.approx(100 / (0.1 + 0.25))


def test_the_last_steps_are_kept_as_they_were(tmp_path: Path) -> None:
    """NaN and infinite values above all."""
    train(exporter(tmp_path), range(1, 556))

    steps = box_of(tmp_path).steps

    assert repr(steps) == repr(tuple(map(step, range(556 - KEPT_STEPS, 556))))


def test_anomalies_are_in_the_box_at_once(tmp_path: Path) -> None:
    """The last one is the one that matters."""
    train(exporter(tmp_path), range(1, 91))

    box = box_of(tmp_path)

    assert [found.step for found in box.anomalies] == [30, 60, 90]
    assert box.counters.anomalies == {"thirtieth": 3}


def test_each_state_is_in_the_box_at_once(tmp_path: Path) -> None:
    """A process that dies while it saves has died while it saved."""
    watched = exporter(tmp_path)
    seen = []
    watched.set_state(catalog.RUNNING)
    with watched.evaluating():
        seen.append(box_of(tmp_path).state)
    with watched.saving():
        seen.append(box_of(tmp_path).state)
    seen.append(box_of(tmp_path).state)

    assert seen == [catalog.EVALUATING, catalog.SAVING, catalog.RUNNING]


@pytest.mark.parametrize(
    ("error", "state", "failure"),
    [
        (None, catalog.COMPLETED, None),
        (KeyboardInterrupt(), catalog.STOPPED, None),
        (ZeroDivisionError(), catalog.CRASHED, "ZeroDivisionError"),
    ],
)
def test_the_end_is_in_the_box(
    tmp_path: Path, error: BaseException | None, state: str, failure: str | None
) -> None:
    """With the class of what ended it."""
    watched = exporter(tmp_path)
    train(watched, range(1, 4))
    watched.finish(error)

    box = box_of(tmp_path)

    assert (box.state, box.failure, box.step) == (state, failure, 3)


def test_a_crash_before_the_first_step_is_worth_a_box(tmp_path: Path) -> None:
    """The model may have found no room."""
    exporter(tmp_path).finish(MemoryError())

    assert box_of(tmp_path).failure == "MemoryError"
    assert box_of(tmp_path).step is None


def test_who_does_not_train_leaves_no_box(tmp_path: Path) -> None:
    """Nor takes the place of the one that is there."""
    exporter(tmp_path).finish()
    idle = exporter(tmp_path)
    idle.start()
    idle.finish(SystemExit())

    assert list(tmp_path.iterdir()) == []


def test_after_a_completed_run_counting_begins_anew(tmp_path: Path) -> None:
    """It is over, and the next one of its name is another."""
    first = exporter(tmp_path)
    train(first, range(1, 40))
    first.finish()

    second = exporter(tmp_path)
    second.start()

    assert second.snapshot.totals.steps == 0
    assert second.status.restarts == 0
    assert second.previous is not None
    assert second.previous.state == catalog.COMPLETED


def test_restarts_are_counted_over_processes(tmp_path: Path) -> None:
    """Each one that goes on where one died is one."""
    restarts = []
    for _ in range(3):
        watched = exporter(tmp_path)
        train(watched, range(1, 4))
        restarts.append(watched.status.restarts)
        watched._recollection.close()  # as when the process is gone

    assert restarts == [0, 1, 2]


@pytest.mark.parametrize("closed", [True, False])
def test_another_exporter_in_the_same_process_is_no_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logs: pytest.LogCaptureFixture, closed: bool
) -> None:
    """As in a notebook, whether the garbage collector has taken the first one or not."""
    monkeypatch.setattr(blackbox_reader, "this_process", this_process)
    first = exporter(tmp_path, calm=True)
    train(first, range(1, 4))
    if closed:
        first._recollection.close()
    second = exporter(tmp_path, calm=True)
    second.start()

    assert (second.status.restarts, second.snapshot.totals.steps) == (0, 3)
    assert "an exporter before this one in this process was last seen at step 3" in logs.text
    assert "is still there" not in logs.text


def test_the_log_says_how_the_last_process_ended(
    tmp_path: Path, logs: pytest.LogCaptureFixture
) -> None:
    """In one line, at the start."""
    first = exporter(tmp_path, clock=lambda: 1.7e9)
    train(first, range(1, 31))
    first._recollection.close()
    logs.clear()

    exporter(tmp_path, clock=lambda: 1.7e9 + 330).start()

    (line,) = [record.getMessage() for record in logs.records]
    assert "last seen at step 30 in state running, 5 minutes ago" in line


def test_a_process_that_still_lives_keeps_its_own_file(
    tmp_path: Path, logs: pytest.LogCaptureFixture
) -> None:
    """An elastic restart may begin before the last worker is gone: neither writes into the map of
    the other."""
    old = exporter(tmp_path)
    train(old, range(1, 5))
    new = exporter(tmp_path)
    train(new, range(5, 8))
    old.observe(step(99))
    new.observe(step(8))

    (aside,) = tmp_path.glob("*.previous")
    assert [found.step for found in read_box(aside).steps] == [1, 2, 3, 4, 99]
    assert [found.step for found in box_of(tmp_path).steps] == [5, 6, 7, 8]
    assert box_of(tmp_path).lives
    assert "is still there" in logs.text


def test_who_is_named_late_has_one_box_under_that_name(tmp_path: Path) -> None:
    """A Trainer says what the run is called after the page is open."""
    train(exporter(tmp_path, "late"), range(1, 4))
    watched = exporter(tmp_path, None)
    watched.start()
    watched.identify(run="late", rank=0)
    train(watched, range(4, 6))

    assert watched.snapshot.totals.steps == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "late-r0.blackbox", "late-r0.blackbox.previous",
    ]  # fmt: skip


def test_who_is_named_late_has_nothing_of_the_run_whose_box_was_read_before(
    tmp_path: Path,
) -> None:
    """By the name that all runs have before they get their own."""
    for _ in range(2):
        nameless = exporter(tmp_path, None)
        train(nameless, range(1, 31))
        nameless._recollection.close()
    watched = exporter(tmp_path, None)
    watched.start()
    assert watched.snapshot.totals.steps == 60

    watched.identify(run="another", rank=0)

    assert set(counted(watched).values()) == {0}
    assert watched.status.restarts == 0
    assert watched.previous is None


def test_who_is_named_late_counts_on_from_its_own_box_alone(tmp_path: Path) -> None:
    """Restarts too, of which the other run had more."""
    for run in (None, None, None, "late"):
        before = exporter(tmp_path, run)
        train(before, range(1, 6))
        before._recollection.close()
    watched = exporter(tmp_path, None)
    watched.start()
    watched.identify(run="late")

    assert watched.status.restarts == 1
    assert watched.snapshot.totals.steps == 5


def test_a_name_that_comes_in_the_middle_of_a_training_forgets_nothing(tmp_path: Path) -> None:
    """What this very process has counted is its own."""
    train(exporter(tmp_path, None), range(1, 4))
    watched = exporter(tmp_path, None)
    train(watched, range(4, 6))
    watched.identify(run="another")

    assert watched.snapshot.totals.steps == 5


def test_a_script_may_go_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative folder is the one that it was at the start."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(tmp_path)
    watched = exporter(Path("boxes"))
    watched.start()
    monkeypatch.chdir(elsewhere)
    train(watched, range(1, 4))

    assert len(box_of(tmp_path / "boxes").steps) == 3
    assert list(elsewhere.iterdir()) == []


def test_ranks_and_runs_have_boxes_of_their_own(tmp_path: Path) -> None:
    """Also runs whose names differ in what file names cannot hold."""
    for run, rank in (("a/b", 0), ("a/b", 1), ("a:b", 0)):
        train(exporter(tmp_path, run, rank=rank), range(1, 3))

    boxes = [read_box(path) for path in tmp_path.iterdir()]

    assert {(box.run, box.rank) for box in boxes} == {("a/b", 0), ("a/b", 1), ("a:b", 0)}


def test_a_run_that_trains_under_another_name_begins_another_box(tmp_path: Path) -> None:
    """In one process, one after the other."""
    watched = exporter(tmp_path, None)
    watched.identify(run="one")
    train(watched, range(1, 4))
    watched.finish()
    watched.identify(run="two")
    train(watched, range(1, 3))

    assert (box_of(tmp_path, "one").state, box_of(tmp_path, "two").state) == (
        catalog.COMPLETED,
        catalog.RUNNING,
    )
    assert len(box_of(tmp_path, "two").steps) == 2


def test_a_closed_exporter_lets_go_of_its_box(tmp_path: Path) -> None:
    """And goes on in a new one when it trains again."""
    watched = exporter(tmp_path)
    train(watched, range(1, 4))
    watched.finish()
    watched.close()
    closed = box_of(tmp_path)
    train(watched, range(4, 6))

    assert closed.lives is False
    assert box_of(tmp_path).counters.totals.steps == 5
    assert [found.step for found in box_of(tmp_path).steps] == [4, 5]


def test_a_file_that_is_there_is_never_written_into(tmp_path: Path) -> None:
    """Another process may have made it in the last moment."""
    path = tmp_path / "x"
    path.write_bytes(b"its own")

    with pytest.raises(FileExistsError):
        blackbox_file.BoxFile(path, {})

    assert path.read_bytes() == b"its own"


def refuse(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logs: pytest.LogCaptureFixture
) -> None:
    """The training goes on, and nothing half made stays behind."""
    monkeypatch.setattr(os, "posix_fallocate", refuse)
    watched = exporter(tmp_path)
    train(watched, range(1, 60))

    assert watched.snapshot.totals.steps == 59
    assert watched.health.errors[catalog.LIFECYCLE_ERROR] == 1
    assert logs.text.count(f"without its black box in {tmp_path}: [Errno 28] No space left") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_one_warning(
    tmp_path: Path, logs: pytest.LogCaptureFixture
) -> None:
    """A read-only disk, or a file of that name."""
    (tmp_path / "file").touch()
    watched = exporter(tmp_path / "file")
    train(watched, range(1, 60))

    assert watched.snapshot.totals.steps == 59
    assert logs.text.count("training goes on without its black box") == 1


@pytest.mark.parametrize("content", [b"my own notes", b"TRNBOX\0\x02" + bytes(80_000)])
def test_a_file_that_is_no_box_is_counted_and_not_lost(
    tmp_path: Path, content: bytes, logs: pytest.LogCaptureFixture
) -> None:
    """Whoever put it there finds it beside the new one."""
    (tmp_path / "foreign-r0.blackbox").write_bytes(content)
    watched = exporter(tmp_path, "foreign")
    train(watched, range(1, 3))

    assert watched.health.errors[catalog.LIFECYCLE_ERROR] == 1
    assert logs.text.count("counting begins anew") == 1
    assert (tmp_path / "foreign-r0.blackbox.previous").read_bytes() == content
    assert len(box_of(tmp_path, "foreign").steps) == 2


@pytest.mark.parametrize("content", [None, b"", bytes(4096)])
def test_a_box_that_was_only_begun_does_not_hide_the_one_before(
    tmp_path: Path, content: bytes | None
) -> None:
    """A process may be killed between making the file and writing into it."""
    train(exporter(tmp_path), range(1, 8))
    (path,) = tmp_path.iterdir()
    path.rename(f"{path}.previous")
    if content is not None:
        path.write_bytes(content)

    second = exporter(tmp_path)
    train(second, range(8, 9))

    assert second.snapshot.totals.steps == 8
    assert read_box(Path(f"{path}.previous")).step == 7


@pytest.mark.filterwarnings("ignore:This process")  # is multi-threaded, later Pythons say of forks
def test_a_forked_child_does_not_write_into_it(tmp_path: Path) -> None:
    """It has a copy of the exporter, and the same pages."""
    watched = exporter(tmp_path)
    train(watched, range(1, 4))
    child = os.fork()
    if not child:
        with suppress(BaseException):
            watched.observe(step(77))
            watched.set_state(catalog.CRASHED, failure="Child")
        os._exit(0)
    os.waitpid(child, 0)
    watched.observe(step(4))

    box = box_of(tmp_path)
    assert [found.step for found in box.steps] == [1, 2, 3, 4]
    assert (box.state, box.pid, box.lives) == (catalog.RUNNING, os.getpid(), True)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_value_that_is_no_number_costs_its_step_alone(tmp_path: Path) -> None:
    """It is refused by the monitor too."""
    watched = exporter(tmp_path)
    watched.set_state(catalog.RUNNING)
    watched.observe(StepSignals(1, 0.0, loss="2"))  # type: ignore[arg-type]
    watched.observe(step(2))

    assert [found.step for found in box_of(tmp_path).steps] == [2]


class Killed(BaseException):
    """The end of a process at a write."""


class DyingMap:
    """A map whose process is killed in the middle of one of its writes, and writes no more."""

    def __init__(self, real: object, writes: Iterator[int], last: int, share: float) -> None:
        self._real, self._writes, self._last, self._share = real, writes, last, share

    def __setitem__(self, where: slice, content: bytes) -> None:
        write = next(self._writes)
        if write < self._last:
            self._real[where] = content  # type: ignore[index]
        elif write == self._last:
            end = where.start or 0
            part = content[: round(self._share * len(content))]
            self._real[end : end + len(part)] = part  # type: ignore[index]
        if write == self._last:
            raise Killed

    def close(self) -> None:
        self._real.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_wherever_a_process_is_killed_the_box_knows_what_the_page_has_shown(
    tmp_path: Path, share: float
) -> None:
    """No counter is lower in the next process than any scrape of this one can have seen it."""
    real_map = blackbox_file._mapped
    for last in range(0, 650, 17):
        writes = count()

        def dying_map(path: Path, writes: Iterator[int] = writes, last: int = last) -> DyingMap:
            return DyingMap(real_map(path), writes, last, share)

        dying = exporter(tmp_path / f"{last}")
        with pytest.MonkeyPatch.context() as patch, suppress(Killed):
            patch.setattr(blackbox_file, "_mapped", dying_map)
            train(dying, range(1, 260))
        heir = exporter(tmp_path / f"{last}")
        heir.start()

        seen, known = counted(dying), counted(heir)
        assert not {name for name, value in known.items() if value < seen[name]}, last
