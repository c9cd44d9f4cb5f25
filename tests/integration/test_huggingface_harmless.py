# SPDX-License-Identifier: Apache-2.0
"""The training does not notice that it is watched, whatever goes wrong in the watcher."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainerCallback

from tests.integration.tiny import (
    STEPS,
    RecordingExporter,
    Rows,
    assert_like_the_log,
    assert_same_weights,
    make_trainer,
    weights,
)
from tests.sync_audit import SyncAudit
from tests.unit.device.late_device import LateDevice
from training_exporter import StepSignals, TrainingExporter
from training_exporter.detectors.base import Verdict
from training_exporter.device.layers import LayerPass
from training_exporter.device.rows import AsyncVectors
from training_exporter.integrations import huggingface
from training_exporter.integrations.huggingface import PrometheusCallback

Weights = dict[str, torch.Tensor]


def busy_trainer(folder: Path, *callbacks: TrainerCallback, **changed: Any) -> Trainer:
    """One that accumulates, clips, logs, evaluates and saves."""
    settings: dict[str, Any] = {
        "gradient_accumulation_steps": 2,
        "max_grad_norm": 0.5,
        "eval_data": Rows(4),
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        **changed,
    }
    return make_trainer(folder, *callbacks, **settings)


def run(folder: Path, *callbacks: TrainerCallback, **changed: Any) -> Weights:
    """The weights after a busy training."""
    trainer = busy_trainer(folder, *callbacks, **changed)
    trainer.train()
    assert trainer.state.global_step == STEPS
    return weights(trainer.model)


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """The weights after the same training without us."""
    return run(tmp_path_factory.mktemp("untouched"))


def timeless(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            name: value
            for name, value in entry.items()
            if not name.endswith(("runtime", "per_second", "preparation_time"))
        }
        for entry in history
    ]


def random_states() -> tuple[Any, ...]:
    return (
        torch.get_rng_state().tolist(),
        random.getstate(),
        tuple(np.random.get_state()[1].tolist()),  # type: ignore[union-attr]
    )


def test_the_training_is_the_same_bit_by_bit(tmp_path: Path) -> None:
    """Weights, the Trainer's own history and all random states, with us and without."""
    ends = []
    for callbacks in ([], [PrometheusCallback(serve=False, layer_interval=1)]):
        trainer = busy_trainer(tmp_path, *callbacks)
        trainer.train()
        ends.append((weights(trainer.model), timeless(trainer.state.log_history), random_states()))

    (weights_without, history_without, random_without), (weights_with, history, randoms) = ends
    assert_same_weights(weights_with, weights_without)
    assert history == history_without
    assert randoms == random_without


def test_weights_do_depend_on_the_training(untouched: Weights, tmp_path: Path) -> None:
    """The comparison of weights notices a difference."""
    other = run(tmp_path, seed=2)

    with pytest.raises(AssertionError):
        assert_same_weights(other, untouched)


# Trouble of ours


class PlantedError(Exception):
    """Nothing that any code of ours expects."""


def planted(*args: Any, **kwargs: Any) -> Any:
    raise PlantedError


PLACES = (
    "exporter.identify",
    "exporter.set_state",
    "exporter.set_nan_filter",
    "exporter.clock",
    "exporter.observe_logged",
    "exporter.observe_evaluation",
    "exporter.finish",
    "exporter.count_dropped",
    "exporter._serving._listen",
    "exporter.timer.idle",
    "exporter._pause",
    "exporter._count_pause",
    "exporter._announcer.tell_new",
    "exporter.monitor.observe",
    "exporter.monitor.observe_evaluation",
    "exporter.monitor.observe_pause",
    "exporter.monitor.plan",
    "exporter.set_peak_flops",
    "exporter.observe_compute",
    "exporter.timer.start",
    "exporter.timer.data_arrived",
    "exporter.timer.pause",
    "exporter.timer.lap",
    "_memory._watch.read",
    "_layers.begin_step",
    "_layers.before_clipping",
    "_layers.after_step",
    "_layers.collect",
    "_layers.finish",
    "_layers.discard",
    "_layers._new_pass",
    "_layers._look_for_non_finite",
    "exporter.observe_layers",
    "_recorder.add_loss",
    "_recorder.add_tokens",
    "_recorder.add_samples",
    "_recorder.set_grad_norm",
    "_recorder.set_learning_rate",
    "_recorder.set_loss_scale",
    "_recorder.finish",
    "_recorder.completed",
    "_recorder.flush",
    "_recorder.discard",
    "_wrap",
    "_evaluations._report",
    "_nans.begin_step",
    "_nans.keep",
    "_nans._inspecting",
    "_nans.add_loss",
    "_nans.before_update",
    "_nans.close_step",
    "_nans._watch.observe",
    "_nans.finish",
    "_nans.start",
    "_nans.write_below",
    "_work._effort.add",
    "_work._effort.discard",
    "_work._effort.measure",
    "_work._phases.start",
    "_work._phases.begin_forward_backward",
    "_work._phases.end_forward_backward",
    "_work._phases.begin_optimizer",
    "_work._phases.begin_own",
    "_work._phases.end_own",
    "_work._phases.end_step",
    "_work._phases.hand_on",
)
FUNCTIONS = (
    "find_trainer", "learning_rates", "loss_scale", "identity", "samples_in",
    "wrap_method",
)  # fmt: skip


@pytest.mark.parametrize("place", [*PLACES, *FUNCTIONS])
def test_an_error_of_ours_stays_ours(
    place: str,
    untouched: Weights,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    logs: pytest.LogCaptureFixture,
) -> None:
    """Whatever part of us breaks: logged, not on each step; counted; the weights are the same."""
    callback = PrometheusCallback(address="127.0.0.1", port=0)
    *path, name = place.split(".")
    owner: Any = huggingface if place in FUNCTIONS else callback
    for part in path:
        owner = getattr(owner, part)
    monkeypatch.setattr(owner, name, planted)

    try:
        result = run(tmp_path, callback)
    finally:
        monkeypatch.undo()
        callback.exporter.close()

    assert_same_weights(result, untouched)
    assert sum(callback.exporter.health.errors.values()) > 0
    errors = [record for record in logs.records if record.levelname == "ERROR"]
    assert 1 <= len(errors) <= 3
    assert len({record.getMessage() for record in errors}) == len(errors)


class Exploding:
    kind = "mine"

    def observe(self, signals: StepSignals) -> Verdict:
        raise PlantedError

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to take over."""


def test_a_detector_that_raises_hurts_nobody(untouched: Weights, tmp_path: Path) -> None:
    """It is retired, the steps are seen, the weights are the same."""
    exporter = RecordingExporter(detectors=[Exploding()])

    result = run(tmp_path, PrometheusCallback(exporter))

    assert_same_weights(result, untouched)
    assert exporter.health.errors["observe"] == 1
    assert exporter.snapshot.totals.steps == STEPS


def test_a_collector_that_raises_hurts_nobody(untouched: Weights, tmp_path: Path) -> None:
    """A page that cannot be drawn in full does not concern the training."""
    exporter = RecordingExporter()
    callback = PrometheusCallback(exporter)

    class Scraping(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            exporter.status = exporter.status._replace(logged=None)  # type: ignore[arg-type]
            assert exporter.value("training_exporter_collector_success", collector="training") == 0

    result = run(tmp_path, callback, Scraping())

    assert_same_weights(result, untouched)
    assert exporter.health.errors["collector"] > 0


def test_no_port_to_be_had(
    untouched: Weights, tmp_path: Path, logs: pytest.LogCaptureFixture
) -> None:
    """All ports taken is one clear line, and the metrics are in the registry still."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        exporter = TrainingExporter(address="127.0.0.1", port=port, port_tries=1)
        result = run(tmp_path, PrometheusCallback(exporter))

    assert_same_weights(result, untouched)
    assert exporter.port is None
    assert exporter.snapshot.totals.steps == STEPS
    assert exporter.health.errors["web"] >= 1
    lines = [record.getMessage() for record in logs.records if record.levelname == "WARNING"]
    assert [str(port) in line for line in lines if "served" in line] == [True]


def test_no_port_to_be_had_and_strict(tmp_path: Path) -> None:
    """Who asked for it gets the error where the Trainer is built."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        exporter = TrainingExporter(
            address="127.0.0.1", port=taken.getsockname()[1], port_tries=1, strict=True
        )
        with pytest.raises(OSError, match="cannot serve metrics"):
            make_trainer(tmp_path, PrometheusCallback(exporter))


def test_the_socket_is_closed_under_us(untouched: Weights, tmp_path: Path) -> None:
    """The page is gone, the training is not."""
    exporter = TrainingExporter(address="127.0.0.1", port=0)

    class Closing(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            server: Any = exporter._serving.server
            server._socket.close()

    try:
        result = run(tmp_path, PrometheusCallback(exporter), Closing())
    finally:
        exporter.close()

    assert_same_weights(result, untouched)
    assert exporter.snapshot.totals.steps == STEPS


# Syncs


class Device(TrainerCallback):
    """Lets the device finish each row one step late."""

    def __init__(self) -> None:
        self.device = LateDevice()
        self.waits_while_training = 0

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.waits_while_training = self.device.waits
        if self.device.behind > 1:
            self.device.advance()


def audited(folder: Path, *callbacks: TrainerCallback) -> SyncAudit:
    trainer = make_trainer(
        folder, *callbacks, gradient_accumulation_steps=2, logging_steps=1000, max_grad_norm=0.5,
        logging_nan_inf_filter=True,
    )  # fmt: skip
    with SyncAudit() as audit:
        trainer.train()
    return audit


def on_the_host() -> tuple[PrometheusCallback, list[Device]]:
    return PrometheusCallback(serve=False), []


def with_layers() -> tuple[PrometheusCallback, list[Device]]:
    return PrometheusCallback(serve=False, layer_interval=1), []


def with_layers_on_a_device() -> tuple[PrometheusCallback, list[Device]]:
    callback, device = PrometheusCallback(serve=False, layer_interval=1), Device()

    def vectors(_: torch.device, slots: int, columns: int) -> AsyncVectors:
        on_cpu = torch.device("cpu")
        return AsyncVectors(on_cpu, slots=slots, columns=columns, backend=device.device)

    callback._recorder = device.device.recorder()
    callback._layers._new_pass = partial(LayerPass, open_vectors=vectors)
    return callback, [device]


def on_a_device() -> tuple[PrometheusCallback, list[Device]]:
    callback, device = PrometheusCallback(serve=False), Device()
    callback._recorder = device.device.recorder()
    return callback, [device]


@pytest.mark.parametrize("place", [on_the_host, on_a_device, with_layers, with_layers_on_a_device])
def test_no_sync_is_ours(
    place: Callable[[], tuple[PrometheusCallback, list[Device]]], tmp_path: Path
) -> None:
    """With accumulation, padding and clipping: as many syncs as without us, and none asked for by
    our files."""
    callback, others = place()

    with_us = audited(tmp_path, callback, *others)
    without = audited(tmp_path)

    assert [sync.operation for sync in with_us.syncs] == [sync.operation for sync in without.syncs]
    assert with_us.in_file("training_exporter") == []
    assert without.syncs != []  # the Trainer's own NaN filter; else the audit would be blind
    assert callback.exporter.snapshot.totals.steps == STEPS
    assert [device.waits_while_training for device in others] == [0] * len(others)


def test_a_device_that_is_late_is_not_waited_for(tmp_path: Path) -> None:
    """Values that come a step late are as true, and only the end of the training waits."""
    exporter, device = RecordingExporter(), Device()
    callback = PrometheusCallback(exporter)
    callback._recorder = device.device.recorder()
    trainer = make_trainer(tmp_path, callback, device, gradient_accumulation_steps=2)

    trainer.train()

    assert_like_the_log(trainer, exporter)
    assert device.waits_while_training == 0
    assert device.device.waits > 0


def test_a_device_is_not_waited_for_after_a_crash(tmp_path: Path) -> None:
    """It may hang for good; the user's exception must not."""

    class Failing(Trainer):
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            if self.state.global_step == 2:
                raise ZeroDivisionError("planted")
            return super().training_step(*args, **kwargs)

    exporter, device = RecordingExporter(), LateDevice()
    callback = PrometheusCallback(exporter)
    callback._recorder = device.recorder()

    with pytest.raises(ZeroDivisionError):
        make_trainer(tmp_path, callback, trainer_class=Failing).train()

    assert device.waits == 0
    assert exporter.status.state == "crashed"


def test_a_device_that_never_answers_costs_steps_not_time(
    untouched: Weights, tmp_path: Path
) -> None:
    """A full ring drops and counts."""
    exporter, device = RecordingExporter(), LateDevice()
    callback = PrometheusCallback(exporter)
    callback._recorder = device.recorder(slots=2)

    result = run(tmp_path, callback)

    assert_same_weights(result, untouched)
    assert exporter.value("training_exporter_dropped_observations_total") == STEPS - 2
    assert [signals.step for signals in exporter.steps] == [1, 2]
