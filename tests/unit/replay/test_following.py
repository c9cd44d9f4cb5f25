# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from shutil import rmtree

import pytest

from tests.unit.replay.logs import (
    NAN,
    ROWS,
    SPIKE,
    rows,
    write_csv,
    write_json_lines,
    write_trainer_state,
)
from tests.unit.replay.test_damage import WRITERS
from tests.unit.replay.test_playing import write_events
from tests.unit.replay.test_wandb_runs import write_wandb
from training_exporter.replay.playing import Plan, Playback
from training_exporter.replay.trouble import ReplayError
from training_exporter.signals import StepSignals

GROWING = [name for name in WRITERS if name != "Hugging Face trainer state"]


class Follower:
    """Follows a log; what is written next is written whenever its end is reached.

    Args:
        path: the log.
        written: writes the next part, one after another.
        plan: as for `Plan`.

    Attributes:
        said: what the user was told.
        steps: steps that were handed on.
    """

    def __init__(self, path: Path, *written: Callable[[], object], **plan: object) -> None:
        self._rest = list(written)
        self.said: list[str] = []
        self.steps: list[int] = []
        self.playback = Playback(path, Plan(**plan), self._wait, self.said.append)  # type: ignore[arg-type]
        self.playback.play(judged=lambda event: self.steps.append(event.step))

    def _wait(self) -> bool:
        if not self._rest:
            return False
        self._rest.pop(0)()
        return True


def added(path: Path, part: bytes) -> Callable[[], object]:
    def write() -> None:
        with path.open("ab") as file:
            file.write(part)

    return write


def found_in(playback: Playback) -> list[tuple[str, int]]:
    return [(each.begun.kind, each.begun.step) for each in playback.judges[0].episodes]


def begun_anew(path: Path, records: Iterable[Mapping[str, float]]) -> Callable[[], object]:
    """Another file of that name, as a logger makes that opens its file with "w"."""
    return lambda: write_csv(path, records)


def steps(first: int, last: int, *, above: float = 0.0) -> list[dict[str, float]]:
    """A falling loss; `above` makes it another run's."""
    return [{"step": step, "loss": 2 + 1 / step + above} for step in range(first, last + 1)]


@pytest.mark.parametrize("name", GROWING)
def test_a_log_is_followed_while_it_is_written(tmp_path: Path, name: str) -> None:
    """Wherever what was written so far ends, also within a number."""
    path = tmp_path / "log"
    whole = WRITERS[name](path, rows()).read_bytes()
    cuts = [0, 5000, 5003, 5016, 9999, len(whole)]
    first, *parts = [whole[start:end] for start, end in pairwise(cuts)]
    path.write_bytes(first)

    follower = Follower(path, *[added(path, part) for part in parts])

    assert follower.playback.course.rows == ROWS
    assert follower.playback.troubles.lines() == []
    assert found_in(follower.playback) == [("loss_spike", SPIKE), ("non_finite", NAN)]
    assert follower.said == []


@pytest.mark.parametrize("name", WRITERS)
def test_what_is_not_there_yet_is_waited_for(tmp_path: Path, name: str) -> None:
    """The folder, the file and its first bytes, each said once."""
    folder = tmp_path / "out"
    names = {"TensorBoard events": "events.out.tfevents.1", "W&B run": "run-x.wandb",
             "JSON lines": "trainer_log.jsonl", "CSV": "metrics.csv"}  # fmt: skip
    path = folder / names.get(name, "trainer_state.json")
    whole = WRITERS[name](tmp_path / "log", rows()[:10]).read_bytes()

    follower = Follower(
        folder,
        lambda: None,
        folder.mkdir,
        lambda: None,
        path.touch,
        lambda: path.write_bytes(whole[:3]),
        lambda: path.write_bytes(whole[:30]),
        lambda: path.write_bytes(whole),
    )

    assert follower.steps == list(range(1, 11))
    assert follower.said[0] == f"Waiting: there is no {folder}."
    assert follower.said[1].startswith(f"Waiting: no log in {folder}; expected")
    assert len(follower.said) == len(set(follower.said))


def test_a_loss_is_waited_for(tmp_path: Path) -> None:
    """A log may begin with other values, and a name that the user gave may come later."""
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1, "lr": 0.1}\n')
    later = "".join(json.dumps({"step": step, "nll": 2.0}) + "\n" for step in (2, 3))

    follower = Follower(path, added(path, later.encode()), names={"loss": "nll"})

    assert follower.steps == [2, 3]
    assert follower.said == ["Waiting: no value is called 'nll'; there are step, lr."]


def test_how_far_rows_are_apart_is_waited_for(tmp_path: Path) -> None:
    """By the first row alone, a window of 200 steps would be taken for 200 rows."""
    path = tmp_path / "log.jsonl"
    lines = [json.dumps(row).encode() + b"\n" for row in rows(stride=10)[:3]]
    path.write_bytes(lines[0])

    follower = Follower(path, *[added(path, line) for line in lines[1:]], profiles=("textbook",))

    assert follower.steps == [10, 20, 30]
    assert follower.playback.judges[0].options["loss_plateau"] == {"window": 20}


@pytest.mark.parametrize("content", [b"all went well\nindeed\n", b"PK\x03\x04\n", bytes(70_000)])
def test_what_will_never_be_a_log_is_not_waited_for(tmp_path: Path, content: bytes) -> None:
    """It is known by its first line."""
    path = tmp_path / "log"
    path.write_bytes(content)

    with pytest.raises(ReplayError, match="no log of a known format"):
        Follower(path, *[lambda: None] * 3)


def test_one_line_of_text_may_be_followed_by_a_log(tmp_path: Path) -> None:
    """As by that of a script which then writes JSON lines, or by the name of one column."""
    for name, first in {"lines": "Starting training", "column": "loss", "table": "# foo"}.items():
        path = tmp_path / name
        path.write_text(first + "\n")
        header = "step,loss\n" if name == "table" else ""
        row = '{{"step": {0}, "loss": {0}}}\n' if name == "lines" else "{0}\n"
        row = "{0},{0}\n" if name == "table" else row
        rest = header + row.format(1) + row.format(2)

        assert Follower(path, added(path, rest.encode())).steps == [1, 2]


def test_an_archive_does_not_grow(tmp_path: Path) -> None:
    """So it is not followed."""
    whole = write_csv(tmp_path / "log.csv", rows()).read_bytes()
    packed = tmp_path / "log.csv.gz"
    packed.write_bytes(gzip.compress(whole))

    with pytest.raises(ReplayError, match="an archive does not grow"):
        Follower(packed)


def test_a_log_that_is_begun_anew(tmp_path: Path) -> None:
    """By a run that was restarted: shorter, as long, or another file; read from its start."""
    path = write_csv(tmp_path / "log.csv", steps(1, 9))

    def other_file() -> None:
        write_csv(tmp_path / "new", steps(3, 20, above=2))
        (tmp_path / "new").replace(path)

    follower = Follower(
        path,
        begun_anew(path, steps(1, 3, above=1)),
        begun_anew(path, steps(2, 4, above=1.5)),
        other_file,
    )

    assert follower.steps == [*range(1, 10), *range(1, 4), *range(2, 5), *range(3, 21)]
    assert follower.said == [f"{path} was begun anew."] * 3
    assert follower.playback.judges[0].totals()["restart"] == 3


def test_a_log_that_is_written_again_with_another_column(tmp_path: Path) -> None:
    """As Lightning does at the first evaluation: what was there before is not new."""
    path = write_csv(tmp_path / "metrics.csv", steps(1, 9))
    evaluated = [*steps(1, 9), {"step": 9, "val_loss": 2.5}, *steps(10, 12)]

    follower = Follower(path, begun_anew(path, evaluated))

    assert follower.steps == [*range(1, 10), 9, *range(10, 13)]
    assert follower.playback.judges[0].totals()["restart"] == 0
    assert follower.playback.troubles.lines() == []


def test_a_file_that_is_gone_when_it_is_to_be_read(tmp_path: Path) -> None:
    """Is waited for: who deletes a log is about to write another one."""
    path = write_csv(tmp_path / "log.csv", steps(1, 9))
    rest = [lambda: None, begun_anew(path, steps(1, 5)), lambda: None]

    def wait() -> bool:
        return bool(rest) and (rest.pop(0)() or True)

    said: list[str] = []
    judged: list[int] = []
    playback = Playback(path, Plan(), wait, said.append)
    path.unlink()
    playback.play(judged=lambda event: judged.append(event.step))

    assert judged == list(range(1, 6))
    assert said == [f"{path} was begun anew."]


def test_the_last_lines_of_a_file_that_was_replaced_are_read(tmp_path: Path) -> None:
    """They may have been written just before."""
    path = write_json_lines(tmp_path / "log.jsonl", steps(1, 5))

    def rotate() -> None:
        added(path, json.dumps({"step": 6, "loss": 1.0}).encode() + b"\n")()
        path.rename(tmp_path / "old")
        write_json_lines(path, steps(7, 9))

    assert Follower(path, rotate).steps == list(range(1, 10))


def test_a_newer_event_file_in_the_same_folder(tmp_path: Path) -> None:
    """Is what a Trainer writes that was restarted; also where the file itself was given."""
    first = write_events(tmp_path / "events.out.tfevents.1.host", steps(1, 9))
    second = tmp_path / "events.out.tfevents.2.host"

    for source in (tmp_path, first):
        follower = Follower(source, lambda: None, lambda: write_events(second, steps(6, 12)))

        assert follower.steps == [*range(1, 10), *range(6, 13)]
        assert follower.said == [f"The log goes on in {second}."]
        assert follower.playback.judges[0].totals()["restart"] == 1
        second.unlink()


def test_an_event_file_is_judged_up_to_the_row_before_the_last(tmp_path: Path) -> None:
    """That one may not be whole, but it shows that the row before it is."""
    path = write_events(tmp_path / "events.out.tfevents.1", steps(1, 9))
    judged: list[int] = []
    judged_before_waiting: list[int] = []

    def wait() -> bool:
        judged_before_waiting.extend(judged)
        return False

    Playback(path, Plan(), wait).play(judged=lambda event: judged.append(event.step))

    assert judged_before_waiting == list(range(1, 9))
    assert judged == list(range(1, 10))


def run_folder(number: int, folder: Path) -> Path:
    made = folder / f"version_{number}"
    made.mkdir(parents=True)
    return made


def test_a_new_folder_beside_the_last_one(tmp_path: Path) -> None:
    """Is what Lightning, W&B and the Trainer make when they are restarted."""
    write_wandb(run_folder(0, tmp_path) / "run-a.wandb", steps(1, 9))
    other = run_folder(1, tmp_path)

    follower = Follower(tmp_path, lambda: write_wandb(other / "run-b.wandb", steps(8, 12)))

    assert follower.steps == [*range(1, 10), *range(8, 13)]
    assert follower.said == [f"The log goes on in {other / 'run-b.wandb'}."]


def test_what_lies_outside_the_folder_that_was_given_is_left_alone(tmp_path: Path) -> None:
    """One who names a run's own folder means that run."""
    first = run_folder(0, tmp_path)
    write_csv(first / "metrics.csv", steps(1, 9))
    other = run_folder(1, tmp_path)

    follower = Follower(first, lambda: write_csv(other / "metrics.csv", steps(1, 9)))

    assert follower.steps == list(range(1, 10))


def test_of_several_runs_the_last_one_is_followed(tmp_path: Path) -> None:
    """And of its output folder what is written row by row, rather than the checkpoints; a folder
    within a run's folder is no run of its own."""
    old, new = run_folder(0, tmp_path), run_folder(1, tmp_path)
    os.utime(write_events(old / "events.out.tfevents.1", steps(1, 50)), (1, 1))
    write_events(new / "events.out.tfevents.2", steps(1, 9))
    curve = new / "loss_train"
    curve.mkdir()
    os.utime(write_events(curve / "events.out.tfevents.3", steps(1, 2)), (1e10, 1e10))
    write_trainer_state(tmp_path / "trainer_state.json", steps(1, 4))

    follower = Follower(tmp_path, lambda: None, lambda: None)

    assert follower.steps == list(range(1, 10))
    assert follower.said == []


def test_a_log_of_another_name_is_followed(tmp_path: Path) -> None:
    """If it is the only one in its folder; an archive there is over."""
    (tmp_path / "old.csv.gz").write_bytes(gzip.compress(b"step,loss\n1,2\n2,3\n"))
    path = write_json_lines(tmp_path / "run.jsonl", steps(1, 3))
    more = added(path, b'{"step": 4, "loss": 2}\n')

    assert Follower(tmp_path, more).steps == [1, 2, 3, 4]


def test_checkpoints_that_lie_deeper_are_followed(tmp_path: Path) -> None:
    """Those of the run that was written last."""
    old, new = run_folder(0, tmp_path), run_folder(1, tmp_path)
    os.utime(checkpoint(old, 50, steps(1, 50)), (1, 1))
    checkpoint(new, 5, steps(1, 5))

    follower = Follower(tmp_path, lambda: checkpoint(new, 9, steps(1, 9)))

    assert follower.steps == list(range(1, 10))


def test_a_damaged_event_file_does_not_end_it(tmp_path: Path) -> None:
    """What comes behind the damage cannot be read, but the next file can."""
    first = write_events(tmp_path / "events.out.tfevents.1", steps(1, 9))
    first.write_bytes(first.read_bytes() + bytes(100))
    second = tmp_path / "events.out.tfevents.2"

    follower = Follower(tmp_path, lambda: None, lambda: write_events(second, steps(10, 12)))

    assert follower.steps == list(range(1, 13))
    assert follower.said == [
        f"{first} is damaged; waiting for what comes after it.",
        f"The log goes on in {second}.",
    ]


def checkpoint(folder: Path, step: int, records: Iterable[Mapping[str, float]]) -> Path:
    made = folder / f"checkpoint-{step}"
    made.mkdir()
    return write_trainer_state(made / "trainer_state.json", records)


def test_states_are_followed_from_checkpoint_to_checkpoint(tmp_path: Path) -> None:
    """Of each what is new, and at once to its last row; old ones may be deleted."""
    checkpoint(tmp_path, 10, steps(1, 10))
    seen: list[int] = []
    judged: list[int] = []
    saved = [20, 30]

    def train_on() -> bool:
        if not saved:
            return False
        seen.append(len(judged))
        step = saved.pop(0)
        rmtree(tmp_path / f"checkpoint-{step - 10}")
        checkpoint(tmp_path, step, [*steps(1, step), {"step": step, "eval_loss": 2.5}])
        return True

    playback = Playback(tmp_path, Plan(), train_on)
    playback.play(judged=lambda event: judged.append(event.step))

    assert judged == [*range(1, 21), 20, *range(21, 31), 30]
    assert seen == [10, 21]
    assert playback.troubles.lines() == []


def test_a_state_that_is_read_while_it_is_written(tmp_path: Path) -> None:
    """Is read again, and is no damage unless it stays like that."""
    whole = write_trainer_state(tmp_path / "whole", steps(1, 9)).read_bytes()
    path = tmp_path / "trainer_state.json"
    path.write_bytes(whole)
    longer = write_trainer_state(tmp_path / "whole", steps(1, 30)).read_bytes()

    follower = Follower(
        path,
        lambda: path.write_bytes(b""),
        lambda: path.write_bytes(longer[: len(longer) // 2]),
        lambda: path.write_bytes(longer),
        lambda: None,
    )
    assert follower.steps == list(range(1, 31))
    assert follower.playback.troubles.lines() == []

    damaged = Follower(path, lambda: path.write_bytes(longer[:-40]), *[lambda: None] * 3)
    assert damaged.playback.troubles.lines() == [
        "1 file that is cut off or damaged, and was read up to there"
    ]


def test_a_run_that_was_resumed_from_an_earlier_checkpoint(tmp_path: Path) -> None:
    """Its state is new from where it differs from what was seen."""
    checkpoint(tmp_path, 10, steps(1, 10))
    resumed = [*steps(1, 6), *steps(7, 12, above=0.1)]

    follower = Follower(
        tmp_path,
        lambda: checkpoint(tmp_path, 6, steps(1, 6)),
        lambda: checkpoint(tmp_path, 12, resumed),
    )

    assert follower.steps == [*range(1, 11), *range(7, 13)]
    assert follower.playback.judges[0].totals()["restart"] == 1


def test_evaluations_have_their_other_results(tmp_path: Path) -> None:
    """By name, without what says which data set it was."""
    record = {"step": 1, "loss": 2.0, "eval_loss": 2.5, "eval_accuracy": 0.5, "eval_wiki_loss": 3}
    path = write_json_lines(tmp_path / "log", [record, {"step": 2, "loss": 1.0}])

    first, evaluation, wiki, _ = Playback(path, Plan()).events()

    assert isinstance(first, StepSignals)
    assert not isinstance(evaluation, StepSignals)
    assert (evaluation.dataset, evaluation.loss) == ("eval", 2.5)
    assert evaluation.metrics == {"accuracy": 0.5}
    assert not isinstance(wiki, StepSignals)
    assert (wiki.dataset, wiki.metrics) == ("wiki", {})
