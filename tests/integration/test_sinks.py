# SPDX-License-Identifier: Apache-2.0
"""Sinks with the real libraries, and the summary of a real Trainer's run."""

from __future__ import annotations

import inspect
import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise
from math import isnan
from pathlib import Path
from threading import Thread
from time import monotonic

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.integration import wandb_files
from tests.integration.tiny import Rows, make_trainer
from tests.unit.sinks.recording import Recording
from training_exporter import TrainingExporter
from training_exporter.integrations.huggingface import PrometheusCallback
from training_exporter.lifecycle.summary_file import FILE_NAME
from training_exporter.replay.playing import Plan, Playback
from training_exporter.signals import Evaluation
from training_exporter.sinks import RunInfo
from training_exporter.sinks.tensorboard import TensorBoardSink
from training_exporter.status import ReportNote
from training_exporter.summary.making import RunSummary

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
    anomaly, (title, text, *_) = wandb_files.alerts(file)
    assert anomaly == ("non_finite", f"step {NAN_AT}: {FOUND}", "WARN", 300)
    assert (title, text.split(";")[0]) == ("report on a NaN", f"loss NaN at step {NAN_AT}")
    told = wandb_files.summary(file)["monitor_summary"]
    assert (told["run"], told["state"], told["step"]) == ("tiny", "completed", 10)


def test_the_time_of_wandbs_rows(tmp_path: Path) -> None:
    """Is that of their steps, though they were logged together."""
    run_with_wandb(
        tmp_path,
        "import time\n"
        "with TrainingExporter(serve=False, sinks=[WandbSink()]) as exporter:\n"
        "    for _ in range(4):\n"
        "        exporter.step(loss=1.0)\n"
        "        time.sleep(0.1)\n",
    )

    times = [row["_timestamp"] for row in wandb_files.rows(wandb_files.only_run(tmp_path))]
    assert all(later - earlier > 0.09 for earlier, later in pairwise(times))


def test_a_crash_before_the_first_step_in_wandb(tmp_path: Path) -> None:
    """Leaves a run that failed, and says so in its summary."""
    run_with_wandb(
        tmp_path,
        "try:\n"
        "    with TrainingExporter(serve=False, sinks=[WandbSink()]):\n"
        "        raise KeyError\n"
        "except KeyError:\n"
        "    pass\n",
    )

    file = wandb_files.only_run(tmp_path)
    assert wandb_files.summary(file)["monitor_summary"]["failure"] == "KeyError"
    assert wandb_files.exit_code(file) == 1


def test_ctrl_c_in_wandb(tmp_path: Path) -> None:
    """Does not look like a success."""
    run_with_wandb(
        tmp_path,
        "try:\n"
        "    with TrainingExporter(serve=False, sinks=[WandbSink()]) as exporter:\n"
        "        watch(exporter)\n"
        "        raise KeyboardInterrupt\n"
        "except KeyboardInterrupt:\n"
        "    pass\n",
    )

    file = wandb_files.only_run(tmp_path)
    assert wandb_files.summary(file)["monitor_summary"]["state"] == "stopped"
    assert wandb_files.exit_code(file) == 255


def test_a_disabled_wandb(tmp_path: Path) -> None:
    """Writes nothing, and its run that does nothing is not made the active one."""
    run_with_wandb(
        tmp_path,
        "with TrainingExporter(serve=False, sinks=[WandbSink(init={'mode': 'disabled'})]) as "
        "exporter:\n"
        "    tell(exporter)\n"
        "    assert wandb.run is None\n",
    )

    assert not list(tmp_path.glob("wandb/*"))


EVALUATED = """
with TrainingExporter(serve=False, sinks=[{sink}]) as exporter:
    for step in range(1, 41):
        exporter.step(loss=1.0, grad_norm=5.0, clip_threshold=1.0)
        if step % 20 == 0:
            exporter.observe_evaluation({{"loss": 2.0, "f1": 0.5}})
            exporter.observe_evaluation({{"loss": 3.0}}, dataset="wiki")
"""


@pytest.mark.parametrize(
    "sink", ["WandbSink()", "TensorBoardSink('wandb')"], ids=["wandb", "tensorboard"]
)
def test_replay_of_what_a_sink_wrote(tmp_path: Path, sink: str) -> None:
    """Finds the steps, the clip threshold and the evaluations of each data set."""
    run_with_wandb(
        tmp_path,
        "from training_exporter.sinks.tensorboard import TensorBoardSink\n"
        + EVALUATED.format(sink=sink),
    )
    playback = Playback(tmp_path / "wandb", Plan())
    playback.play()

    assert (playback.course.rows, playback.course.evaluations) == (40, 4)
    snapshot = playback.judges[0].monitor.snapshot
    assert snapshot.signals is not None
    assert snapshot.signals.clip_threshold == 1.0
    evaluations = snapshot.evaluations
    assert {of: (each.step, each.loss) for of, each in evaluations.items()} == {
        "eval": (40, 2.0), "wiki": (40, 3.0),
    }  # fmt: skip
    assert evaluations["eval"].metrics == {"f1": 0.5}


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


SHORT = """
with TrainingExporter(serve=False, sinks=[WandbSink()]) as exporter:
    watch(exporter)
"""


def test_wandb_whose_server_is_away(tmp_path: Path) -> None:
    """Even a short run is kept, offline, and no other is left beside it."""
    output = run_with_wandb(
        tmp_path, SHORT, WANDB_API_KEY="a" * 40, WANDB_BASE_URL="http://127.0.0.1:9"
    )

    assert "W&B was not reached, so its run is offline: http://127.0.0.1:9 cannot be rea" in output
    file = wandb_files.only_run(tmp_path)
    assert len(wandb_files.rows(file)) == 10
    assert wandb_files.summary(file)["monitor_summary"]["state"] == "completed"
    assert not list(tmp_path.glob("wandb/run-*"))


def test_wandb_whose_server_says_nothing(tmp_path: Path) -> None:
    """Is given up in less time than the end of the run waits."""
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        begin = monotonic()
        # W&B's own reports on itself would wait for that server for 10 s.
        run_with_wandb(
            tmp_path, SHORT, WANDB_API_KEY="a" * 40, WANDB_BASE_URL=url,
            WANDB_ERROR_REPORTING="false",
        )  # fmt: skip

    assert monotonic() - begin < 25  # INIT_SECONDS alone are more
    assert len(wandb_files.rows(wandb_files.only_run(tmp_path))) == 10


def test_a_wandb_key_that_is_none(tmp_path: Path) -> None:
    """Leaves the run offline, and is said."""
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        output = run_with_wandb(tmp_path, SHORT, WANDB_API_KEY="short", WANDB_BASE_URL=url)
        server.shutdown()

    assert "so its run is offline: WANDB_API_KEY invalid" in output
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


def test_wandb_of_a_loop_without_a_block(tmp_path: Path) -> None:
    """Ends after ours has told it all, though its own end was asked for later than ours."""
    run_with_wandb(
        tmp_path,
        "import time\n"
        "exporter = TrainingExporter(serve=False, sinks=[WandbSink()]).start()\n"
        "for _ in range(20):\n"
        "    exporter.step(loss=1.0)\n"
        "    time.sleep(0.2)\n",
    )

    file = wandb_files.only_run(tmp_path)
    assert len(wandb_files.rows(file)) == 20
    assert wandb_files.summary(file)["monitor_summary"]["state"] == "stopped"


WHOLE_SCRIPT = """
import gc, sys
from training_exporter import TrainingExporter
from training_exporter.sinks import Sink

class Printing(Sink):
    def start(self, run):
        print("started", file=sys.stderr)

    def finish(self, summary):
        # In one go: the log writes to the same place.
        sys.stderr.write(f"told {{summary.state}} {{summary.failure}} {{summary.steps}}\\n")

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


def test_evaluations_and_reports_of_a_run() -> None:
    """In their order among the steps. An evaluation after the end belongs to no run, and does not
    start one."""
    sink = Recording()
    note = ReportNote("loss", "loss NaN at step 2", None, True)
    with TrainingExporter(serve=False, run="tiny", sinks=[sink]) as exporter:
        exporter.observe_evaluation({"loss": 3.0})
        exporter.step(loss=1.0)
        exporter.observe_evaluation({"loss": 2.5, "accuracy": 0.5}, dataset="wiki")
        exporter.observe_report(note)
    exporter.observe_evaluation({"loss": 2.0})
    assert exporter._sinks is not None
    exporter._sinks.wait()

    start, first, step, second, told, end = sink.told
    assert isinstance(start, RunInfo)
    assert isinstance(first, Evaluation)
    assert (first.step, first.loss, step) == (0, 3.0, 1)
    assert isinstance(second, Evaluation)
    assert (second.step, second.dataset, second.loss) == (1, "wiki", 2.5)
    assert second.metrics == {"accuracy": 0.5}
    assert told == note
    assert isinstance(end, RunSummary)
    assert exporter.health.errors["evaluation"] == 0


HANGING = """
import sys, time
from training_exporter import TrainingExporter
from training_exporter.sinks import Sink

class Hanging(Sink):
    name = "hanging"

    def finish(self, summary):
        sys.stderr.write(f"told {summary.state}\\n")  # in one go, beside a log
        time.sleep(60)
"""


def pressing_ctrl_c(script: str) -> tuple[int, str, float]:
    """A script's exit code, what it said, and how long it took after Ctrl-C, which it gets when it
    says that it waits for its sink."""
    process = subprocess.Popen(
        [sys.executable, "-c", HANGING + script], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    said = ""
    while "waiting up to 5 s for the sink hanging" not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    pressed = monotonic()
    process.send_signal(signal.SIGINT)
    said += process.communicate(timeout=60)[1]
    return process.returncode, said, monotonic() - pressed


@pytest.mark.parametrize("inside", ["pass", "exporter.finish()"])
def test_ctrl_c_after_the_end_of_a_run(inside: str) -> None:
    """Ends all waiting for a sink, and the script, as it does elsewhere. The run has completed all
    the same, and what was not delivered is said."""
    code, said, seconds = pressing_ctrl_c(
        "with TrainingExporter(serve=False, sinks=[Hanging()]) as exporter:\n"
        "    exporter.step(loss=1.0)\n"
        f"    {inside}\n"
        "print('the script goes on', file=sys.stderr)\n"
    )

    assert code == -signal.SIGINT
    assert "the script goes on" not in said
    assert said.count("told ") == said.count("told completed") == 1
    assert "gave up on the sink hanging: 1 message not delivered" in said
    assert seconds < 4


def test_ctrl_c_at_the_end_of_the_process() -> None:
    """Only ends the waiting, as there is nothing else to interrupt."""
    code, said, seconds = pressing_ctrl_c(
        "exporter = TrainingExporter(serve=False, sinks=[Hanging()])\nexporter.step(loss=1.0)\n"
    )

    assert code == 0
    assert "Traceback" not in said
    assert "gave up on the sink hanging: 1 message not delivered" in said
    assert seconds < 4
