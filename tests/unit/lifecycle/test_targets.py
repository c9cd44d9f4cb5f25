# SPDX-License-Identifier: Apache-2.0
"""Target files: what is in them, whose they are, and when they go."""

from __future__ import annotations

import gc
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from time import time

import pytest

from training_exporter import TrainingExporter, serving
from training_exporter.lifecycle.processes import Process, this_process
from training_exporter.lifecycle.targets import (
    ABANDONED_SECONDS,
    META,
    Target,
    TargetFolder,
    TargetKeeper,
    target_host,
)
from training_exporter.serving import Serving

TARGET = Target("my run", 3, "node-1", 10403)
HERE = this_process()
LATER = HERE._replace(started="1")
"""A process whose number is ours by now."""
ELSEWHERE = HERE._replace(machine="other:1")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "targets"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def left_by(
    process: Process, folder: Path, *, machine: str = "vm", days: float = 0.0, rank: int = 0
) -> Path:
    """The file of a process, which has been left for some days."""
    TargetFolder(folder, process, machine).write(TARGET._replace(rank=rank))
    (path,) = folder.glob(f"my_run-*-r{rank}-{machine}-*.json")
    when = time() - days * 24 * 3600
    os.utime(path, (when, when))
    return path


def dead() -> Process:
    """A process of this machine that has ended."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return HERE._replace(number=child.pid)


def swept(folder: Path, *, abandoned: bool = False) -> list[str]:
    TargetFolder(folder, HERE, "vm").sweep(abandoned=abandoned)
    return names(folder)


def test_a_file_is_what_prometheus_reads(folder: Path) -> None:
    """One group with one target, and labels that it drops by itself: a `run` of the target's would
    rename that of the series."""
    TargetFolder(folder, HERE, "vm").write(TARGET)

    (path,) = folder.iterdir()
    (group,) = json.loads(path.read_text())
    assert path.name == f"my_run-fe6fed75-r3-vm-{os.getpid()}-10403.json"
    assert group["targets"] == ["node-1:10403"]
    assert (group["labels"][f"{META}run"], group["labels"][f"{META}rank"]) == ("my run", "3")
    assert all(name.startswith("__meta_") for name in group["labels"])
    assert set(group) == {"targets", "labels"}


def test_a_new_name_of_the_run_is_a_new_file_instead_of_the_old_one(folder: Path) -> None:
    """An integration tells the name later than the user's script has started the exporter."""
    files = TargetFolder(folder, HERE, "vm")
    for run in ("training", "llama"):
        files.write(TARGET._replace(run=run))

    assert names(folder) == [f"llama-r3-vm-{os.getpid()}-10403.json"]


def test_a_file_that_cannot_be_finished_leaves_nothing_behind(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one before stays as it was, whole."""
    files = TargetFolder(folder, HERE, "vm")
    files.write(TARGET)
    before = {path: path.read_text() for path in folder.iterdir()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        files.write(TARGET._replace(host="node-2"))

    assert {path: path.read_text() for path in folder.iterdir()} == before


def test_a_removed_file_may_be_gone_already(folder: Path) -> None:
    """Somebody may have emptied the folder, which shows."""
    files = TargetFolder(folder, HERE, "vm")
    assert not files.touch()
    files.write(TARGET)
    assert files.touch()
    next(folder.iterdir()).unlink()

    assert not files.touch()
    files.remove()
    files.remove()
    assert names(folder) == []


@pytest.mark.parametrize("abandoned", [False, True])
def test_a_dead_process_of_this_machine_is_swept(folder: Path, abandoned: bool) -> None:
    """Also when its number belongs to another one by now; a living one is not, however old."""
    left_by(dead(), folder)
    left_by(LATER, folder, rank=1)
    alive = left_by(HERE, folder, days=400, rank=2)

    assert swept(folder, abandoned=abandoned) == [alive.name]


@pytest.mark.parametrize("machine", ["vm", "node-7"])
def test_files_of_other_machines_stay_for_a_day(folder: Path, machine: str) -> None:
    """One of the same name may be another container, in which the number means another process."""
    process = ELSEWHERE._replace(number=dead().number)
    fresh = left_by(process, folder, machine=machine, days=0.9)
    left_by(process, folder, machine=machine, days=1.1, rank=1)

    assert len(swept(folder)) == 2
    assert swept(folder, abandoned=True) == [fresh.name]


def test_where_machines_cannot_be_told_apart_only_age_counts(folder: Path) -> None:
    """Without /proc."""
    left_by(dead()._replace(machine=""), folder)
    files = TargetFolder(folder, HERE._replace(machine=""), "vm")

    files.sweep(abandoned=True)

    assert len(names(folder)) == 1


@pytest.mark.parametrize(
    "content",
    ["", "nonsense", "[]", "{}", "[1]", '[{"targets": ["a:1"]}]', '[{"labels": {}}]', "[[]]"]
    + [f'[{{"labels": {{"{META}process": {value}}}}}]' for value in ('"x"', '"a b c"', "1", "[]")],
)
def test_files_of_others_are_left_alone(folder: Path, content: str) -> None:
    """Whatever their names; and a folder that is none is no trouble."""
    swept_nothing = TargetFolder(folder / "nowhere", HERE, "vm")
    swept_nothing.sweep(abandoned=True)
    folder.mkdir()
    ours_by_name = folder / "x-r0-vm-1-10400.json"
    for path in (ours_by_name, folder / "mine.json"):
        path.write_text(content)
        os.utime(path, (0, 0))

    assert len(swept(folder, abandoned=True)) == 2


def test_what_was_never_finished_goes_after_a_day(folder: Path) -> None:
    """Of a process that was killed while it wrote."""
    folder.mkdir()
    for name, age in (("old", 1.1), ("new", 0.5)):
        path = folder / f".{name}-r0-vm-1-10400.json.tmp"
        path.write_text("[")
        when = time() - age * ABANDONED_SECONDS
        os.utime(path, (when, when))

    assert swept(folder, abandoned=True) == [".new-r0-vm-1-10400.json.tmp"]


@pytest.mark.parametrize(
    ("address", "chosen", "host"),
    [
        ("0.0.0.0", None, socket.gethostname()),
        ("::", None, socket.gethostname()),
        ("[::]", None, socket.gethostname()),
        ("", None, socket.gethostname()),
        ("10.0.0.7", None, "10.0.0.7"),
        ("::1", None, "[::1]"),
        ("localhost", None, "localhost"),
        ("0.0.0.0", "node-7.cluster", "node-7.cluster"),
        ("0.0.0.0", "fe80::7", "[fe80::7]"),
    ],
)
def test_the_host_is_one_at_which_the_page_is_reached(
    address: str, chosen: str | None, host: str
) -> None:
    """The user's choice, else what is listened to, else this machine's name."""
    assert target_host(address, chosen) == host


def test_a_process_knows_itself_and_not_another() -> None:
    """By number and start; in doubt it lives, and what is no process is said to be none."""
    assert Process.from_text(str(HERE)) == HERE
    assert HERE.is_alive()
    assert not LATER.is_alive()
    assert not dead().is_alive()
    with pytest.raises(ValueError, match="number"):
        Process.from_text("machine -1 5")


def test_a_process_that_has_ended_and_was_not_waited_for_is_dead() -> None:
    """Its parent may never do it."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    alive = HERE._replace(number=child.pid, started=_started(child.pid))
    assert alive.is_alive()

    os.kill(child.pid, 9)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    ended = not alive.is_alive()
    child.communicate()

    assert ended


def _started(number: int) -> str:
    return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[19]


class Writes:
    """Counts what is written, and tells when."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.targets: list[Target] = []
        self._arrived = threading.Semaphore(0)
        write = TargetFolder.write

        def counted(files: TargetFolder, target: Target) -> None:
            try:
                write(files, target)
            finally:
                self.targets.append(target)
                self._arrived.release()

        monkeypatch.setattr(TargetFolder, "write", counted)

    def wait(self) -> None:
        assert self._arrived.acquire(timeout=10)


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> Writes:
    return Writes(monkeypatch)


def test_the_file_is_kept_until_it_is_removed(folder: Path, writes: Writes) -> None:
    """Written once for all that is the same, swept at the start, and gone with its thread."""
    dead_one = left_by(dead(), folder, machine=socket.gethostname())
    writes.wait()
    keeper = TargetKeeper(folder, on_error=pytest.fail)
    before = threading.active_count()
    for rank in (3, 3, 4):
        keeper.publish(TARGET._replace(rank=rank))
    writes.wait()
    writes.wait()
    during = names(folder)

    keeper.remove()
    keeper.remove()

    assert [target.rank for target in writes.targets[1:]] == [3, 4]
    assert len(during) == 1
    assert dead_one.name not in during
    assert names(folder) == []
    assert threading.active_count() == before


def test_a_file_that_somebody_removes_comes_back(folder: Path, writes: Writes) -> None:
    """After the time of a refresh."""
    keeper = TargetKeeper(folder, on_error=pytest.fail, refresh_seconds=0.01)
    keeper.publish(TARGET)
    writes.wait()
    next(folder.iterdir()).unlink()

    writes.wait()
    assert len(names(folder)) == 1
    keeper.remove()


def test_a_script_that_goes_elsewhere_takes_no_folder_along(
    tmp_path: Path, writes: Writes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative folder is that of the start."""
    monkeypatch.chdir(tmp_path)
    keeper = TargetKeeper(Path("targets"), on_error=pytest.fail)
    keeper.publish(TARGET)
    writes.wait()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    keeper.remove()

    assert names(tmp_path / "targets") == []
    assert names(tmp_path / "elsewhere") == []


@pytest.mark.parametrize(("rank", "left"), [(0, 0), (3, 1)])
def test_the_first_rank_sweeps_for_all_machines(
    folder: Path, writes: Writes, rank: int, left: int
) -> None:
    """A thousand that look at the files of a thousand would be a million looks."""
    left_by(ELSEWHERE, folder, machine="node-7", days=2)
    writes.wait()
    keeper = TargetKeeper(folder, on_error=pytest.fail)
    keeper.publish(TARGET._replace(rank=rank))
    writes.wait()
    keeper.remove()

    assert len(names(folder)) == left


def test_a_folder_that_cannot_be_used_is_one_warning_and_counted(
    tmp_path: Path, writes: Writes, logs: pytest.LogCaptureFixture
) -> None:
    """The training goes on, and each attempt is counted."""
    (tmp_path / "file").write_text("")
    errors: list[None] = []
    keeper = TargetKeeper(tmp_path / "file" / "targets", lambda: errors.append(None))
    for rank in (0, 1):
        keeper.publish(TARGET._replace(rank=rank))
        writes.wait()

    keeper.remove()

    assert len(errors) == 2
    (record,) = logs.records
    assert record.levelname == "WARNING"
    assert "without a target file" in record.getMessage()
    assert "file/targets" in record.getMessage()


def test_a_forked_child_leaves_its_parents_file_alone(folder: Path, writes: Writes) -> None:
    """A data loader's worker that closes what it has inherited."""
    keeper = TargetKeeper(folder, on_error=pytest.fail)
    keeper.publish(TARGET)
    writes.wait()
    before = names(folder)
    keeper._process = HERE._replace(number=HERE.number + 1)  # as a child sees its parent's

    keeper.publish(TARGET._replace(rank=9))
    keeper.remove()

    assert names(folder) == before
    keeper._process = HERE
    keeper.remove()
    assert writes.targets == [TARGET]


@pytest.fixture
def exporter(folder: Path) -> TrainingExporter:
    return TrainingExporter(port=0, address="127.0.0.1", sd_dir=str(folder), run="r", linger=0)


def test_an_exporter_that_serves_has_a_file(
    exporter: TrainingExporter, folder: Path, writes: Writes
) -> None:
    """With its own port, rewritten when the rank is known, gone when it closes, and back when it
    serves again."""
    for _ in range(2):
        with exporter:
            writes.wait()
            assert names(folder) == [
                f"r-r0-{socket.gethostname()}-{os.getpid()}-{exporter.port}.json"
            ]
            exporter.identify(rank=2, model="Llama")
            writes.wait()
            assert [name[:4] for name in names(folder)] == ["r-r2"]
            exporter.identify(rank=0)
            writes.wait()
        assert len(names(folder)) == 1  # the end can still be scraped

        exporter.close()
        assert names(folder) == []


@pytest.mark.parametrize("settings", [{"serve": False}, {"ranks": "zero", "rank": 1}])
def test_who_serves_no_page_writes_no_file(folder: Path, settings: dict[str, object]) -> None:
    """There is nothing to be found."""
    with TrainingExporter(port=0, sd_dir=str(folder), **settings) as exporter:
        exporter.identify(run="r")
        assert exporter.port is None
    exporter.close()

    assert not folder.exists()


def test_a_dropped_exporter_takes_its_file_along(folder: Path, writes: Writes) -> None:
    """As its server."""
    before = set(threading.enumerate())
    exporter = TrainingExporter(port=0, address="127.0.0.1", sd_dir=str(folder)).start()
    writes.wait()
    assert len(names(folder)) == 1
    del exporter
    gc.collect()
    for thread in set(threading.enumerate()) - before:
        thread.join(10)

    assert names(folder) == []


def test_who_has_no_time_to_wait_leaves_no_file(
    exporter: TrainingExporter, folder: Path, writes: Writes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C once more, while the process waits for the last scrape."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    exporter.start()
    writes.wait()
    monkeypatch.setattr(Serving, "_open", {exporter._serving})
    monkeypatch.setattr(serving, "linger", interrupted)
    Serving.last_words()

    assert names(folder) == []
    exporter.close()
