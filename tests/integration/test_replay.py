# SPDX-License-Identifier: Apache-2.0
"""Replay of what the real libraries write: transformers, TensorBoard, W&B, and real logs."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from random import Random
from time import monotonic, sleep
from typing import Any

import pytest
from torch.utils.tensorboard import SummaryWriter
from transformers import default_data_collator

from tests.integration.tiny import RecordingExporter, make_trainer
from training_exporter.demo.faults import fault_callback
from training_exporter.demo.model import build_model
from training_exporter.demo.plan import parse_faults
from training_exporter.demo.text import library_text
from training_exporter.integrations.huggingface import PrometheusCallback
from training_exporter.replay.backtest import play_all, read_labels, summaries
from training_exporter.replay.playing import Plan, Playback
from training_exporter.replay.rows import Event

REAL_LOGS = Path(__file__).resolve().parents[3] / "shared" / "logs"


def played(path: Path, **plan: Any) -> Playback:
    playback = Playback(path, Plan(**plan))
    playback.play()
    return playback


def found_in(playback: Playback) -> list[tuple[str, int]]:
    return [(each.begun.kind, each.begun.step) for each in playback.judges[0].episodes]


NOT_LOGGED = {"throughput_drop", "memory_growth", "learning_rate_anomaly"}
"""A Trainer logs no time and no memory, and the rate of its schedule instead of the one used."""


def test_a_trainers_state_has_the_anomalies_of_the_live_run(tmp_path: Path) -> None:
    """Exactly those that were counted while it ran: the faults of the demo, NaN among them."""
    faults = parse_faults(["explosion@100", "nan@180"], steps=200)
    exporter = RecordingExporter()
    training, held_out = library_text(seed=0)
    trainer = make_trainer(
        tmp_path,
        PrometheusCallback(exporter),
        *map(fault_callback, faults),
        model=build_model(seed=0),
        data=training,
        eval_data=held_out,
        trainer_settings={"data_collator": default_data_collator},
        max_steps=200,
        learning_rate=3e-3,
        max_grad_norm=2.0,
        eval_strategy="steps",
        eval_steps=50,
    )
    trainer.train()
    trainer.save_state()
    live = {each.kind: each.total for each in exporter.snapshot.anomalies}

    replayed = played(Path(trainer.args.output_dir), clip_threshold=trainer.args.max_grad_norm)

    counted = replayed.judges[0].totals()
    for kind in NOT_LOGGED:
        del counted[kind], live[kind]
    assert counted == live
    assert counted["non_finite"] >= 1
    assert sum(counted.values()) > counted["non_finite"]
    assert replayed.source.format.name == "Hugging Face trainer state"
    begun = [(each.kind, each.step) for each in exporter.snapshot.recent]
    assert found_in(replayed) == [each for each in begun if each[0] not in NOT_LOGGED]


def spiked(step: int) -> dict[str, float]:
    """A falling loss with one spike and one NaN, as numbers that fp32 holds exactly."""
    loss = {60: 64.0, 80: math.nan}.get(step, 2.0 + 2.0 ** -(step // 8))
    return {"train/loss": loss, "train/grad_norm": 0.5, "train/learning_rate": 0.25}


def test_tensorboards_own_files(tmp_path: Path) -> None:
    """Text and histograms lie between the scalars; a file that is cut off is read up to there."""
    with SummaryWriter(str(tmp_path)) as writer:
        for step in range(1, 101):
            for tag, value in spiked(step).items():
                writer.add_scalar(tag, value, step)
            writer.add_text("note", "a" * step, step)
            if step % 20 == 0:
                writer.add_scalar("eval/loss", 3.0, step)

    playback = played(tmp_path)

    assert found_in(playback) == [("loss_spike", 60), ("non_finite", 80)]
    assert (playback.course.rows, playback.course.evaluations, playback.stride) == (100, 5, 1)
    assert playback.troubles.lines() == []
    (events,) = tmp_path.iterdir()
    events.write_bytes(events.read_bytes()[: events.stat().st_size * 7 // 10])
    cut = played(tmp_path)
    assert found_in(cut) == [("loss_spike", 60)]
    assert cut.troubles.lines() == ["1 last event that is cut off and was left out"]


def test_tensors_are_scalars_too(tmp_path: Path) -> None:
    """TensorFlow 2 and JAX log them so, and so does `new_style`."""
    with SummaryWriter(str(tmp_path)) as writer:
        for step in range(1, 101):
            writer.add_scalar("loss", spiked(step)["train/loss"], step, new_style=True)

    assert found_in(played(tmp_path)) == [("loss_spike", 60), ("non_finite", 80)]


WANDB_RUN = """\
import sys, wandb
from tests.integration.test_replay import spiked
run = wandb.init(mode="offline", dir=sys.argv[1], project="replayed")
for step in range(1, 101):
    run.log({**spiked(step), "train/global_step": step, "note": "a" * 3000})
run.finish()
"""


def test_wandbs_own_offline_run(tmp_path: Path) -> None:
    """Found below its folder; records go over the file's blocks, and damage costs one block."""
    environment = {**os.environ, "WANDB_SILENT": "true", "WANDB_CACHE_DIR": str(tmp_path)}
    subprocess.run(
        [sys.executable, "-c", WANDB_RUN, str(tmp_path)],
        check=True, capture_output=True, env=environment, timeout=120,
        cwd=Path(__file__).resolve().parents[2],
    )  # fmt: skip

    playback = played(tmp_path / "wandb")

    assert playback.source.format.name == "W&B run"
    assert found_in(playback) == [("loss_spike", 60), ("non_finite", 80)]
    assert playback.columns.names["step"] == "train/global_step"
    path = playback.source.paths[0]
    damaged = bytearray(path.read_bytes())
    damaged[(1 << 15) * 2 + 9000] ^= 1
    path.write_bytes(damaged)
    rest = played(path)
    assert 70 < rest.course.rows < 100
    assert "blocks of records that are damaged" in " ".join(rest.troubles.lines())


class Follower:
    """Follows a real log; each look at its end does something next, such as train on.

    Args:
        path: the log.
        happens: what happens, one after another.

    Attributes:
        said: what the user was told.
        steps: steps that were handed on, those of evaluations too.
    """

    def __init__(self, path: Path, *happens: Callable[[], object]) -> None:
        self._rest = list(happens)
        self.said: list[str] = []
        self.steps: list[int] = []
        self.playback = Playback(path, Plan(), self._wait, self.said.append)
        self.playback.play(judged=lambda event: self.steps.append(event.step))

    def _wait(self) -> bool:
        if not self._rest:
            return False
        self._rest.pop(0)()
        return True


def test_tensorboards_files_are_followed(tmp_path: Path) -> None:
    """Through a restart, which begins another file."""
    writers: list[SummaryWriter] = []

    def begin(*steps: int) -> None:
        writers.append(SummaryWriter(str(tmp_path)))
        go_on(*steps)

    def go_on(*steps: int) -> None:
        for step in steps:
            writers[-1].add_scalar("train/loss", 2.0 + 1 / step, step)
        writers[-1].flush()

    begin(*range(1, 10))
    follower = Follower(
        tmp_path, lambda: go_on(*range(10, 20)), lambda: begin(*range(15, 25)),
        lambda: go_on(*range(25, 30)),
    )  # fmt: skip
    for writer in writers:
        writer.close()

    assert follower.steps == [*range(1, 20), *range(15, 30)]
    (line,) = follower.said
    assert line.startswith("The log goes on in")
    assert follower.playback.judges[0].totals()["restart"] == 1


@pytest.mark.parametrize(("reported_to", "name"), [("tensorboard", "TensorBoard events"),
                                                   ([], "Hugging Face trainer state")])  # fmt: skip
def test_a_trainer_is_followed(tmp_path: Path, reported_to: str | list[str], name: str) -> None:
    """From before its first step, and through its being resumed, by its output folder."""

    def train(steps: int, checkpoint: int | None) -> None:
        trainer = make_trainer(
            tmp_path, max_steps=steps, save_strategy="steps", save_steps=4, report_to=reported_to
        )
        folder = Path(trainer.args.output_dir)
        trainer.train(
            resume_from_checkpoint=checkpoint and str(folder / f"checkpoint-{checkpoint}")
        )

    output = tmp_path / "tiny-run"
    follower = Follower(output, lambda: train(6, None), lambda: train(12, 4), lambda: None)

    assert follower.playback.source.format.name == name
    assert follower.said[0] == f"Waiting: there is no {output}."
    assert list(dict.fromkeys(follower.steps)) == list(range(1, 13))
    assert follower.playback.troubles.lines()[1:] == []


WANDB_GOES_ON = """\
import sys, wandb
run = wandb.init(mode="offline", dir=sys.argv[1], project="followed")
for step in range(1, 21):
    run.log({"train/loss": 2.0 + 1 / step, "train/global_step": step})
sys.stdin.readline()
run.finish()
"""


def test_a_wandb_run_is_followed(tmp_path: Path) -> None:
    """Its rows are there while it goes on: W&B writes them every 15 seconds or so."""
    environment = {**os.environ, "WANDB_SILENT": "true", "WANDB_CACHE_DIR": str(tmp_path)}
    deadline = monotonic() + 100
    with subprocess.Popen(
        [sys.executable, "-c", WANDB_GOES_ON, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env=environment,
    ) as process:  # fmt: skip

        def wait() -> bool:
            sleep(0.2)
            return process.poll() is None and monotonic() < deadline

        steps: list[int] = []

        def judged(event: Event) -> None:
            steps.append(event.step)
            if len(steps) == 19:  # the last one waits for what may belong to it
                assert process.poll() is None
                process.communicate(b"\n")

        Playback(tmp_path / "wandb", Plan(), wait).play(judged=judged)

    assert steps == list(range(1, 21))
    assert process.returncode == 0


def peak_of(path: Path, rows: int) -> int:
    """Bytes that replaying a log of so many rows takes at most."""
    random = Random(0)
    with path.open("w", encoding="utf-8") as file:
        for step in range(1, rows + 1):
            file.write(f'{{"step": {step}, "loss": {random.gauss(2, 0.1):.4f}}}\n')
    tracemalloc.start()
    try:
        assert played(path).course.rows == rows
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_log(tmp_path: Path) -> None:
    """Its rows are streamed, and nothing of them is kept but what a live run keeps."""
    short, long = peak_of(tmp_path / "short", 3_000), peak_of(tmp_path / "long", 15_000)

    assert long < short + 200_000


@pytest.mark.skipif(not REAL_LOGS.is_dir(), reason="the folder of real logs is not here")
def test_real_logs() -> None:
    """What is read from the original files of real runs is what their CSV says."""
    raw = REAL_LOGS / "raw"
    state = played(raw / "hf_mistral_translator__trainer_state.json")
    lines = played(raw / "hf_mistral_translator__trainer_log.jsonl")
    events = played(next(raw.glob("algo_adamg_in_vit_*tfevents*")))

    assert (state.course.rows, state.stride) == (866, 10)
    assert (lines.course.rows, lines.course.loss) == (866, state.course.loss)
    assert events.course.rows == 1204
    assert events.columns.evaluations == {"validation/loss": "eval", "test/loss": "test"}


@pytest.mark.skipif(not REAL_LOGS.is_dir(), reason="the folder of real logs is not here")
def test_real_labels() -> None:
    """The default profile finds most of what people marked in the shortest real logs."""
    labels = read_labels(REAL_LOGS / "labels.tsv")
    short = {
        run: marked
        for run, marked in labels.by_run.items()
        if (REAL_LOGS / "runs" / f"{run}.csv.gz").stat().st_size < 25_000
    }

    trials, missing = play_all(
        REAL_LOGS, type(labels)(labels.unit, short), Plan(windows_in_steps=False)
    )

    found = summaries(trials, labels.unit)["robust"]
    assert missing == []
    assert found["non_finite"].recall == 1.0
    assert found["loss_spike"].recall is not None
    assert found["loss_spike"].recall > 0.6


@pytest.mark.parametrize("mode", ["--serve", "--follow"])
def test_a_page_ends_with_sigterm(mode: str, tmp_path: Path) -> None:
    """As with Ctrl-C: containers and service managers send it, and wait long if it is in vain."""
    log = tmp_path / "log.csv"
    log.write_text("step,loss\n1,2.0\n2,1.9\n")
    command = [sys.executable, "-c", "from training_exporter.cli import app; app()"]
    with subprocess.Popen(
        [*command, "replay", str(log), mode, "--port", "0"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        said = next(line for line in process.stdout if "Ctrl-C" in line)
        process.terminate()
        rest, _ = process.communicate(timeout=30)

    assert "is on http://" in said
    assert rest.endswith("Stopped.\n")
    assert process.returncode == 0
