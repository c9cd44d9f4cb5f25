# SPDX-License-Identifier: Apache-2.0
"""A Trainer, a loop of one's own and torchrun go on from a checkpoint, and so does what we know."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Trainer

from tests.integration.tiny import (
    RecordingExporter,
    assert_same_weights,
    make_trainer,
    step_logs,
    weights,
)
from tests.unit.device.late_device import LateDevice
from training_exporter.integrations.huggingface import PrometheusCallback
from training_exporter.lifecycle.resume import FILE_NAME

ROOT = Path(__file__).parent.parent.parent
SAVED, END = 20, 40


def train(
    folder: Path, steps: int, resume: Any = None, **settings: Any
) -> tuple[Trainer, RecordingExporter]:
    """Train up to a step, as a new process would: with a new model, Trainer and exporter."""
    exporter = RecordingExporter()
    trainer = make_trainer(folder, PrometheusCallback(exporter), **saving(steps, **settings))
    trainer.train(resume_from_checkpoint=resume)
    return trainer, exporter


def saving(steps: int, **settings: Any) -> dict[str, Any]:
    return {
        "max_steps": steps, "save_strategy": "steps", "save_steps": 10, "learning_rate": 1e-3,
        "lr_scheduler_type": "constant", **settings,
    }  # fmt: skip


def checkpoint(folder: Path, step: int) -> Path:
    return folder / "tiny-run" / f"checkpoint-{step}"


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("once")
    train(folder, SAVED)
    return folder


@pytest.fixture
def stopped(trained_once: Path, tmp_path: Path) -> Path:
    """A folder with a run that was saved and stopped at step SAVED."""
    return Path(shutil.copytree(trained_once, tmp_path, dirs_exist_ok=True))


def anomalies(exporter: RecordingExporter) -> dict[str, int]:
    return {found.kind: found.total for found in exporter.snapshot.anomalies if found.total}


def failures(exporter: RecordingExporter) -> dict[str, float | None]:
    series = "training_exporter_resume_failures_total"
    reasons = exporter.health.resume_failures
    return {reason: n for reason in reasons if (n := exporter.value(series, reason=reason))}


def assert_no_errors(exporter: RecordingExporter) -> None:
    assert exporter.health.errors == dict.fromkeys(exporter.health.errors, 0)


def test_a_resumed_run_goes_on_as_if_it_had_never_stopped(stopped: Path) -> None:
    """Averages and curves are those of a run in one piece, no anomaly begins, and what went into
    the weights is counted on; the counters of the process begin at 0."""
    _, whole = train(stopped / "whole", END)
    _, second = train(stopped, END, resume=True)

    assert [signals.step for signals in second.steps] == list(range(SAVED + 1, END + 1))
    assert second.snapshot.loss_ema == pytest.approx(whole.snapshot.loss_ema, rel=1e-5)
    assert second.snapshot.grad_norm_ema == pytest.approx(whole.snapshot.grad_norm_ema, rel=1e-5)
    points = [point.step for point in second.snapshot.history.points()]
    assert points == list(range(1, END + 1))
    assert anomalies(second) == {}
    for series in ("steps", "tokens", "samples"):
        run = second.value(f"training_run_{series}")
        assert run == whole.value(f"training_{series}_total")
    assert second.value("training_steps_total") == END - SAVED
    assert second.value("training_restarts_total") == 1
    assert failures(second) == {}
    assert_no_errors(second)


def test_going_back_to_an_older_checkpoint(tmp_path: Path) -> None:
    """In another process or the same, by its path: steps that are trained again are no restart."""
    trainer, first = train(tmp_path, 30)
    kept = shutil.copytree(checkpoint(tmp_path, 10), tmp_path / "kept")
    (checkpoint(tmp_path, 10) / FILE_NAME).unlink()
    _, other = train(tmp_path, 30, resume=str(kept))
    trainer.train(str(kept))

    assert [signals.step for signals in other.steps] == list(range(11, 31))
    assert [signals.step for signals in first.steps[30:]] == list(range(11, 31))
    for exporter, counted, restarts in ((other, 20, 1), (first, 50, 0)):
        assert anomalies(exporter) == {}
        assert exporter.value("training_run_steps") == 30
        assert exporter.value("training_steps_total") == counted
        assert exporter.value("training_restarts_total") == restarts
        assert failures(exporter) == {}
        assert_no_errors(exporter)


def test_weights_that_are_others_are_a_jump(stopped: Path) -> None:
    """The Trainer says nothing when steps and optimiser go on and the weights do not."""
    file = checkpoint(stopped, SAVED) / "model.safetensors"
    save_file(
        {name: 9.0 * value for name, value in load_file(file).items()}, file, {"format": "pt"}
    )
    _, second = train(stopped, END, resume=True)

    jump = next(found for found in second.snapshot.anomalies if found.kind == "resume_jump")
    assert (jump.total, jump.last_step) == (1, SAVED + 8)
    assert jump.last_value > jump.last_threshold


def test_our_file_comes_and_goes_with_its_checkpoint(tmp_path: Path) -> None:
    """One in each, nothing beside them, and the Trainer's own state knows nothing of us."""
    train(tmp_path, END, save_total_limit=2)

    assert sorted(os.listdir(tmp_path / "tiny-run")) == [
        "checkpoint-30", "checkpoint-40", "training_exporter_summary.json",
    ]  # fmt: skip
    for step in (30, 40):
        folder = checkpoint(tmp_path, step)
        assert json.loads((folder / FILE_NAME).read_text())["step"] == step
        state = json.loads((folder / "trainer_state.json").read_text())
        assert state["stateful_callbacks"].keys() == {"TrainerControl"}


def test_the_training_does_not_notice(trained_once: Path, tmp_path: Path) -> None:
    """A resumed run has the same weights, bit by bit, and the same log without us."""
    results = []
    for name in ("with", "without"):
        shutil.copytree(trained_once, tmp_path / name)
        callbacks = [PrometheusCallback(RecordingExporter())] if name == "with" else []
        trainer = make_trainer(tmp_path / name, *callbacks, **saving(END))
        trainer.train(resume_from_checkpoint=True)
        results.append((weights(trainer.model), [entry["loss"] for entry in step_logs(trainer)]))

    assert_same_weights(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]


@pytest.mark.parametrize(
    ("reason", "content"),
    [
        ("missing", None),
        ("unreadable", '{"format":1,"run":"tin'),
        ("unreadable", '{"format":99}'),
        ("foreign", {"run": "somebody else's"}),
        ("foreign", {"step": 7}),
        ("world_size", {"world_size": 8}),
    ],
)
def test_a_checkpoint_that_does_not_fit(
    reason: str, content: Any, stopped: Path, logs: pytest.LogCaptureFixture
) -> None:
    """Is warned about once, counted and left, and the training goes on as it did before."""
    file = checkpoint(stopped, SAVED) / FILE_NAME
    if content is None:
        file.unlink()
    elif isinstance(content, dict):
        file.write_text(json.dumps({**json.loads(file.read_text()), **content}))
    else:
        file.write_text(content)
    logs.clear()

    trainer, second = train(stopped, END, resume=True)

    assert trainer.state.global_step == END
    assert failures(second) == {reason: 1}
    assert [record.levelname for record in logs.records].count("WARNING") == 1
    assert second.value("training_run_steps") is None
    assert second.value("training_steps_total") == END - SAVED
    assert anomalies(second) == {}
    assert_no_errors(second)


def test_it_can_be_turned_off(tmp_path: Path) -> None:
    """Then nothing is written, and nothing read."""
    for resume, steps in ((None, SAVED), (True, END)):
        exporter = RecordingExporter(resume_state=False)
        trainer = make_trainer(tmp_path, PrometheusCallback(exporter), **saving(steps))
        trainer.train(resume_from_checkpoint=resume)
        assert failures(exporter) == {}
        assert len(exporter.snapshot.history.points()) == SAVED

    assert list(tmp_path.rglob(f"*{FILE_NAME}*")) == []


def test_a_checkpoint_that_cannot_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk costs our state, and not the run."""

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("training_exporter.lifecycle.resume.write_state", full)
    trainer, exporter = train(tmp_path, SAVED)

    assert trainer.state.global_step == SAVED
    assert exporter.health.errors["lifecycle"] == 2


def test_steps_still_on_their_way_are_saved(tmp_path: Path) -> None:
    """Whoever copies weights from a device has waited for all before, so they have arrived."""
    exporter, device = RecordingExporter(), LateDevice()
    callback = PrometheusCallback(exporter)
    callback._recorder = device.recorder(slots=END)

    class SavesWeights(Trainer):
        def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
            super()._save_checkpoint(*args, **kwargs)
            device.advance(device.behind)

    make_trainer(tmp_path, callback, trainer_class=SavesWeights, **saving(SAVED)).train()

    state = json.loads((checkpoint(tmp_path, SAVED) / FILE_NAME).read_text())
    assert state["levels"]["run"]["steps"] == SAVED
    assert device.waits == 0


def test_saving_is_no_step_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it costs is counted with the saving of the checkpoint."""
    exporter = RecordingExporter()
    now = [0.0]
    exporter.timer._clock = lambda: now[0]
    original = exporter.resumption.save

    def slow(folder: Path, step: int) -> None:
        now[0] += 100.0
        original(folder, step)

    monkeypatch.setattr(exporter.resumption, "save", slow)
    make_trainer(tmp_path, PrometheusCallback(exporter), **saving(SAVED)).train()

    assert exporter.value("training_pause_seconds_total", activity="saving") == 200.0
    assert exporter.snapshot.totals.step_seconds == 0.0
    assert exporter.snapshot.totals.data_wait_seconds == 0.0


def test_a_loop_of_ones_own(tmp_path: Path) -> None:
    """Its state goes into its own checkpoint, and steps are numbered on."""
    first = RecordingExporter(run="mine")
    for _ in range(50):
        first.step(loss=torch.tensor(2.0), samples=4)
    torch.save({"exporter": first.state_dict()}, tmp_path / "own.pt")

    second = RecordingExporter(run="mine")
    second.load_state_dict(torch.load(tmp_path / "own.pt")["exporter"])
    for _ in range(10):
        second.step(loss=torch.tensor(2.0), samples=4)

    assert [signals.step for signals in second.steps] == list(range(51, 61))
    assert second.snapshot.run == (60.0, 0.0, 240.0)
    assert second.value("training_restarts_total") == 1
    assert anomalies(second) == {}
    assert_no_errors(second)


@pytest.mark.parametrize("nonsense", [None, {}, [1], {"format": 1}])
def test_nonsense_does_not_stop_a_loop_of_ones_own(nonsense: Any) -> None:
    """It is counted, and the steps begin at 1."""
    exporter = RecordingExporter(run="mine")
    exporter.load_state_dict(nonsense)
    exporter.step(loss=1.0)

    assert failures(exporter) == {"unreadable": 1}
    assert [signals.step for signals in exporter.steps] == [1]
    assert_no_errors(exporter)


@pytest.mark.e2e
def test_torchrun_starts_both_ranks_again(tmp_path: Path) -> None:
    """One of two dies after a checkpoint; both go on from it, under the same name, without an
    alarm, and say so."""
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone",
            "--max-restarts=1", str(Path(__file__).parent / "elastic_worker.py"), str(tmp_path),
        ],
        cwd=ROOT, timeout=240, capture_output=True, text=True,
        env={
            **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
            # A store for each start: in one for all, a rank now and then reads where another one
            # listened before it died, and cannot connect.
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr

    for rank in range(2):
        report = json.loads((tmp_path / f"{rank}.json").read_text())
        assert report["run"] == "tiny-run"
        assert report["rank"] == rank
        assert report["restarts"] == 1
        assert report["steps"] == list(range(SAVED + 1, END + 1))
        assert report["anomalies"] == {}
        assert not any(report["failures"].values())
        assert not any(report["errors"].values())
        steps, tokens, samples = report["run_totals"]
        assert steps == END
        assert (samples, tokens is None) == ((None, True) if rank else (END * 2, False))
    assert "after step 20" in done.stderr
