# SPDX-License-Identifier: Apache-2.0
"""Sinks with the real libraries, and the summary of a real Trainer's run."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from math import isnan
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.integration import wandb_files
from tests.integration.tiny import Rows, make_trainer
from training_exporter import TrainingExporter
from training_exporter.integrations.huggingface import PrometheusCallback
from training_exporter.lifecycle.summary_file import FILE_NAME
from training_exporter.sinks.tensorboard import TensorBoardSink

NAN_AT = 6
FOUND = "the loss or the gradient norm is NaN or infinite"


def watch(exporter: TrainingExporter, steps: int = 10) -> None:
    """Some steps, one of them with a NaN."""
    for step in range(1, steps + 1):
        exporter.step(loss=float("nan") if step == NAN_AT else 1.0 / step, learning_rate=0.1)


def tell(exporter: TrainingExporter, steps: int = 10) -> None:
    """Some steps, and wait until the sink has them."""
    watch(exporter, steps)
    feed = exporter._sinks
    assert feed is not None
    for worker in feed._told:
        worker._orders.put(False)
    feed.wait(60)


def test_tensorboard(tmp_path: Path) -> None:
    """Its own reader finds each step, the NaN among them, the anomaly and the summary."""
    with TrainingExporter(serve=False, run="tiny", sinks=[TensorBoardSink(tmp_path)]) as exporter:
        watch(exporter)

    reader = EventAccumulator(str(tmp_path)).Reload()
    losses = {event.step: event.value for event in reader.Scalars("monitor/loss")}
    assert list(losses) == list(range(1, 11))
    assert losses[10] == pytest.approx(0.1)
    assert isnan(losses[NAN_AT])
    assert [event.value for event in reader.Scalars("monitor/learning_rate")] == [
        pytest.approx(0.1)
    ] * 10
    (anomaly,) = reader.Tensors("monitor/anomalies/text_summary")
    assert anomaly.step == NAN_AT
    assert anomaly.tensor_proto.string_val == [f"**non_finite**: {FOUND}".encode()]
    (summary,) = reader.Tensors("monitor/summary/text_summary")
    assert b"**run tiny completed at step 10**" in summary.tensor_proto.string_val[0]
    assert exporter.health.errors["sink"] == 0


def test_histograms_in_tensorboard(tmp_path: Path) -> None:
    """Of each layer's gradients and weights, at the first step and then at intervals, as they were
    before the step."""
    model = torch.nn.Sequential(torch.nn.Linear(30, 20), torch.nn.Linear(20, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sink = TensorBoardSink(tmp_path, histogram_steps=4)
    gradients, weights = [], []
    with TrainingExporter(serve=False, sinks=[sink]) as exporter:
        exporter.watch_model(model)
        for step in range(1, 7):
            model(torch.full((4, 30), float(step))).mean().backward()
            if step in {1, 5}:
                gradients.append([each.grad.detach().clone() for each in model[0].parameters()])
                weights.append([each.detach().clone() for each in model[0].parameters()])
            exporter.clip_grad_norm_(model.parameters(), 1e-3)
            optimizer.step()
            optimizer.zero_grad()
            exporter.step()

    reader = EventAccumulator(str(tmp_path), size_guidance={"histograms": 0}).Reload()
    assert reader.Tags()["histograms"] == [
        f"monitor/{what}/{layer}" for what in ("gradients", "parameters") for layer in ("L0", "L1")
    ]
    for tag, expected in (("gradients", gradients), ("parameters", weights)):
        events = reader.Histograms(f"monitor/{tag}/L0")
        assert [event.step for event in events] == [1, 5]
        for event, tensors in zip(events, expected, strict=True):
            values = torch.cat([tensor.flatten() for tensor in tensors]).double()
            found = event.histogram_value
            assert found.num == sum(found.bucket) == 30 * 20 + 20
            assert (found.min, found.max) == (float(values.min()), float(values.max()))
            assert found.sum_squares == pytest.approx(float(values.square().sum()))
    assert exporter.health.errors["sink"] == 0


def test_histograms_of_a_trainers_run(tmp_path: Path) -> None:
    """Of all micro-batches of a step together, and before clipping: they add up to the norm that
    the Trainer logs."""
    sink = TensorBoardSink(tmp_path / "ours", histogram_steps=2)
    trainer = make_trainer(
        tmp_path, PrometheusCallback(serve=False, sinks=[sink]), gradient_accumulation_steps=2,
        max_grad_norm=0.01,
    )  # fmt: skip
    trainer.train()

    reader = EventAccumulator(str(tmp_path / "ours"), size_guidance={"histograms": 0}).Reload()
    squares = dict.fromkeys((1, 3), 0.0)
    for tag in reader.Tags()["histograms"]:
        if tag.startswith("monitor/gradients/"):
            for event in reader.Histograms(tag):
                squares[event.step] += event.histogram_value.sum_squares
    logged = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
    assert {step: found**0.5 for step, found in squares.items()} == {
        step: pytest.approx(logged[step - 1], rel=1e-4) for step in (1, 3)
    }


def run_with_wandb(folder: Path, code: str, **environment: str) -> str:
    """A script that has this machine's W&B, but neither a key nor anybody to ask for one."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    script = (
        "import wandb\n"
        "from training_exporter import TrainingExporter\n"
        "from training_exporter.sinks import wandb as sink\n"
        "from training_exporter.sinks.wandb import WandbSink\n"
        f"NAN_AT = {NAN_AT}\n{inspect.getsource(watch)}\n{inspect.getsource(tell)}\n{code}"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder, env={**ours, "HOME": str(folder), **environment},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "error in the exporter" not in done.stdout
    assert "is switched off" not in done.stdout, done.stdout
    return done.stdout


def test_wandb_without_a_key(tmp_path: Path) -> None:
    """A run of its own, offline, with a row for each step; nobody is asked, and no run is active
    that was not before."""
    run_with_wandb(
        tmp_path,
        "with TrainingExporter(serve=False, run='tiny', sinks=[WandbSink()]) as exporter:\n"
        "    tell(exporter)\n"
        "    assert wandb.run is None\n"
        "exporter._sinks.wait(60)\n",
    )

    file = wandb_files.only_run(tmp_path)
    rows = wandb_files.rows(file)
    assert [row["monitor/step"] for row in rows] == list(range(1, 11))
    assert rows[9]["monitor/loss"] == 0.1
    assert isnan(rows[NAN_AT - 1]["monitor/loss"])
    assert wandb_files.alerts(file) == [
        ("non_finite", f"step {NAN_AT}: {FOUND}", "WARN", 300),
    ]
    told = wandb_files.summary(file)["monitor_summary"]
    assert (told["run"], told["state"], told["step"]) == ("tiny", "completed", 10)


def test_wandb_in_the_users_run(tmp_path: Path) -> None:
    """His rows and his step counter are as without us; ours ride on them."""
    run_with_wandb(
        tmp_path,
        "mine = wandb.init(mode='offline')\n"
        "with TrainingExporter(serve=False, sinks=[WandbSink()]) as exporter:\n"
        "    for step in range(1, 6):\n"
        "        tell(exporter, steps=2)\n"
        "        tell(exporter, steps=2)\n"
        "        mine.log({'mine': step}, step=step)\n"
        "mine.finish()\n",
    )

    file = wandb_files.only_run(tmp_path)
    rows = wandb_files.rows(file)
    his = [(row["_step"], row["mine"]) for row in rows if "mine" in row]
    assert his == [(n, n) for n in range(1, 6)]
    assert [(row["_step"], row.get("monitor/step")) for row in rows] == [
        (0, 4), (1, 8), (2, 12), (3, 16), (4, 20), (5, None),
    ]  # fmt: skip
    assert wandb_files.summary(file)["monitor_summary"]["state"] == "completed"


def test_wandb_beside_the_users_run(tmp_path: Path) -> None:
    """A run of its own has every step, is offline as his is, and leaves his alone."""
    run_with_wandb(
        tmp_path,
        "mine = wandb.init(mode='offline', id='mine')\n"
        "with TrainingExporter(serve=False, sinks=[WandbSink(own_run=True)]) as exporter:\n"
        "    watch(exporter)\n"
        "exporter._sinks.wait(60)\n"
        "assert wandb.run is mine\n"
        "mine.log({'mine': 1})\n"
        "mine.finish()\n",
    )

    files = {file.stem: file for file in tmp_path.glob("wandb/offline-run-*/run-*.wandb")}
    (his,) = wandb_files.rows(files.pop("run-mine"))
    (ours,) = files.values()
    assert not [name for name in his if name.startswith("monitor")]
    assert [row["monitor/step"] for row in wandb_files.rows(ours)] == list(range(1, 11))


def test_a_wandb_that_could_only_ask(tmp_path: Path) -> None:
    """An older one, whose login would ask for a key, is not even called."""
    run_with_wandb(
        tmp_path,
        "def login(*, verify): raise AssertionError\n"
        "sink.wandb.login = login\n"
        "with TrainingExporter(serve=False, sinks=[WandbSink()]) as exporter:\n"
        "    watch(exporter)\n"
        "exporter._sinks.wait(60)\n",
    )

    assert len(wandb_files.rows(wandb_files.only_run(tmp_path))) == 10


def test_wandb_whose_server_is_away(tmp_path: Path) -> None:
    """It is given up in bounded time, and the run is offline."""
    output = run_with_wandb(
        tmp_path,
        "sink.INIT_SECONDS = 2.0\n"
        "with TrainingExporter(serve=False, sinks=[WandbSink()]) as exporter:\n"
        "    watch(exporter)\n"
        "exporter._sinks.wait(60)\n",
        WANDB_API_KEY="a" * 40,
        WANDB_BASE_URL="http://127.0.0.1:9",
    )

    assert "W&B was not reached, so its run is offline" in output
    assert len(wandb_files.rows(wandb_files.only_run(tmp_path))) == 10


def test_a_users_run_that_is_over(tmp_path: Path) -> None:
    """Is trouble that is said once; the training and what came before stay."""
    output = run_with_wandb(
        tmp_path,
        "mine = wandb.init(mode='offline')\n"
        "with TrainingExporter(serve=False, sinks=[WandbSink()]) as exporter:\n"
        "    tell(exporter)\n"
        "    mine.finish()\n",
    )

    assert output.count("the W&B run that was active has been finished") == 1
    assert len(wandb_files.rows(wandb_files.only_run(tmp_path))) == 1


WHOLE_SCRIPT = """
import gc, sys
from training_exporter import TrainingExporter
from training_exporter.sinks import Sink

class Printing(Sink):
    def start(self, run):
        print("started", file=sys.stderr)

    def finish(self, summary):
        print("told", summary.state, summary.failure, summary.steps, file=sys.stderr, flush=True)

exporter = TrainingExporter(port=0, serve={serve}, sinks=[Printing()]).start()
for _ in range(3):
    exporter.step(loss=1.0)
{end}
"""


@pytest.mark.parametrize("serve", [True, False])
@pytest.mark.parametrize(
    ("end", "told"),
    [
        ("", "told stopped None 3.0"),
        ("raise KeyError", "told crashed KeyError 3.0"),
        ("exporter.finish()", "told completed None 3.0"),
        ("exporter.finish(); exporter.close()", "told completed None 3.0"),
        ("exporter.close()", "told stopped None 3.0"),
        ("del exporter; gc.collect()", "told stopped None 3.0"),
    ],
)
def test_a_loop_without_a_block_is_told_of_its_end(serve: bool, end: str, told: str) -> None:
    """Whoever ends it, and once: the process waits for its sinks, but no longer than it has to."""
    script = WHOLE_SCRIPT.format(serve=serve, end=end)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )

    lines = [line for line in done.stderr.splitlines() if line.startswith(("told", "started"))]
    assert lines == ["started", told]


def test_beside_a_trainers_own_tensorboard(tmp_path: Path) -> None:
    """Each has its own names, and the callback takes sinks as the exporter does."""
    callback = PrometheusCallback(serve=False, sinks=[TensorBoardSink(tmp_path / "ours")])
    trainer = make_trainer(tmp_path, callback, report_to=["tensorboard"])
    trainer.train()

    (theirs,) = tmp_path.glob("tiny-run/runs/*")
    losses = EventAccumulator(str(theirs)).Reload().Scalars("train/loss")
    ours = EventAccumulator(str(tmp_path / "ours")).Reload().Scalars("monitor/loss")
    assert [event.step for event in ours] == [event.step for event in losses] == [1, 2, 3, 4]
    assert [event.value for event in ours] == pytest.approx([event.value for event in losses], 1e-3)


def test_the_summary_of_a_trainers_run(tmp_path: Path, logs: pytest.LogCaptureFixture) -> None:
    """Is in its output folder and in the log, with what the Trainer itself says."""
    exporter = TrainingExporter(serve=False)
    trainer = make_trainer(
        tmp_path, PrometheusCallback(exporter), eval_data=Rows(4), eval_strategy="steps",
        eval_steps=2,
    )  # fmt: skip
    trainer.train()

    told = json.loads((tmp_path / "tiny-run" / FILE_NAME).read_text())
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert told["state"] == "completed"
    assert told["step"] == trainer.state.global_step
    assert told["loss"] == pytest.approx(losses[-1], rel=1e-3)
    assert told["best"]["loss"] == pytest.approx(min(losses), rel=1e-3)
    assert told["eval_loss"]["eval"] == trainer.state.log_history[-2]["eval_loss"]
    assert told["seconds"]["evaluation"] > 0
    assert logs.text.count("run tiny-run completed at step 4") == 1


def test_the_summary_of_a_trainers_crash(tmp_path: Path) -> None:
    """It is there as well, and says by what."""
    trainer = make_trainer(tmp_path, PrometheusCallback(TrainingExporter(serve=False)))
    step = trainer.training_step

    def breaks(*args: object, **kwargs: object) -> object:
        if trainer.state.global_step == 2:
            raise RuntimeError("mine")
        return step(*args, **kwargs)

    trainer.training_step = breaks
    with pytest.raises(RuntimeError, match="mine"):
        trainer.train()

    told = json.loads((tmp_path / "tiny-run" / FILE_NAME).read_text())
    assert (told["state"], told["failure"], told["step"]) == ("crashed", "RuntimeError", 2)
