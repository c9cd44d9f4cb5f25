# SPDX-License-Identifier: Apache-2.0
"""How trainers, callbacks and runs begin, end, meet and come back."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from transformers import Trainer, TrainerCallback

from tests.integration.tiny import (
    STEPS,
    RecordingExporter,
    Rows,
    StreamedRows,
    assert_like_the_log,
    make_trainer,
    step_logs,
    tiny_model,
    trained,
)
from tests.ports import free_port
from training_exporter import TrainingExporter
from training_exporter.integrations.huggingface import PrometheusCallback


def steps_of(exporter: RecordingExporter) -> list[int]:
    return [signals.step for signals in exporter.steps]


# Ways to come to a trainer


def test_a_callback_added_after_the_trainer_was_built(tmp_path: Path) -> None:
    """It finds its trainer when the training begins."""
    exporter = RecordingExporter()
    trainer = make_trainer(tmp_path)
    trainer.add_callback(PrometheusCallback(exporter))

    trainer.train()

    assert_like_the_log(trainer, exporter)
    assert exporter.status.state == "completed"


def test_attaching_an_exporter(tmp_path: Path) -> None:
    """`exporter.attach(trainer)` is the same as a callback, and twice is the same as once."""
    exporter = RecordingExporter()
    trainer = make_trainer(tmp_path, gradient_accumulation_steps=2, eval_data=Rows(4))

    callback = exporter.attach(trainer)
    again = exporter.attach(trainer)
    trainer.evaluate()
    trainer.train()

    assert again is callback
    assert exporter.status.run == "tiny-run"
    assert exporter.snapshot.evaluations["eval"].loss is not None
    assert_like_the_log(trainer, exporter)


def test_two_callbacks_in_one_trainer(tmp_path: Path) -> None:
    """Each of them sees the truth."""
    one, other = RecordingExporter(), RecordingExporter()
    trainer = make_trainer(
        tmp_path, PrometheusCallback(one), PrometheusCallback(other), gradient_accumulation_steps=2
    )

    trainer.train()

    assert_like_the_log(trainer, one)
    assert_like_the_log(trainer, other)


def test_somebody_elses_wrapper_between_two_of_ours(tmp_path: Path) -> None:
    """A user who replaces a wrapped method and calls the old one does not double the loss."""
    exporter = RecordingExporter()
    trainer = make_trainer(tmp_path, PrometheusCallback(exporter))
    step, log, evaluate = trainer.training_step, trainer.log, trainer.evaluate
    trainer.training_step = lambda *args, **kwargs: step(*args, **kwargs)
    trainer.log = lambda *args, **kwargs: log(*args, **kwargs)
    trainer.evaluate = lambda *args, **kwargs: evaluate(*args, **kwargs)

    trainer.train()
    trainer.evaluate(Rows(4))

    assert_like_the_log(trainer, exporter)
    assert exporter.snapshot.totals.samples == STEPS * 4
    assert len(exporter.evaluations) == 1


def test_the_run_is_named_by_its_folder_or_by_the_user(tmp_path: Path) -> None:
    """Never by a whole path, which older Trainers take for a name."""
    by_folder, by_name = RecordingExporter(), RecordingExporter()

    make_trainer(tmp_path, PrometheusCallback(by_folder), run_name=str(tmp_path / "tiny-run"))
    make_trainer(tmp_path, PrometheusCallback(by_name), run_name="my run")

    assert (by_folder.status.run, by_name.status.run) == ("tiny-run", "my run")


# Training more than once


def test_training_twice(tmp_path: Path) -> None:
    """The second training counts on, and its beginning is a restart, not a spike."""
    trainer, exporter = trained(tmp_path)
    first = list(exporter.steps)
    exporter.steps.clear()
    states = []

    class Witness(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            states.append(exporter.status.state)

    trainer.add_callback(Witness())
    trainer.train()

    assert len(first) == STEPS
    assert_like_the_log(trainer, exporter)
    assert set(states) == {"running"}
    assert exporter.value("training_steps_total") == 2 * STEPS
    assert exporter.value("training_anomalies_total", kind="loss_spike") == 0
    assert exporter.status.state == "completed"


def test_finding_the_batch_size(tmp_path: Path) -> None:
    """Out of memory twice: the tries leave no trace in the steps, and nothing is wrapped twice."""

    class Greedy(Trainer):
        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            if len(inputs["input_ids"]) > 8:
                raise RuntimeError("CUDA out of memory.")
            return super().training_step(model, inputs, *args, **kwargs)

    trainer, exporter = trained(
        tmp_path,
        trainer_class=Greedy,
        auto_find_batch_size=True,
        per_device_train_batch_size=32,
        data=Rows(256),
    )

    assert_like_the_log(trainer, exporter)
    assert {signals.samples for signals in exporter.steps} <= {7, 8}
    assert exporter.status.state == "completed"
    assert exporter.status.failure is None


def test_two_trainers_one_after_the_other_and_again(tmp_path: Path) -> None:
    """Each with its own callback, taking turns."""
    one, other = RecordingExporter(), RecordingExporter()
    trainers = [
        make_trainer(tmp_path / "one", PrometheusCallback(one)),
        make_trainer(tmp_path / "other", PrometheusCallback(other), learning_rate=0.1),
    ]

    for trainer in (*trainers, *trainers):
        trainer.train()

    assert steps_of(one) == steps_of(other) == [1, 2, 3, 4] * 2
    for trainer, exporter in zip(trainers, (one, other), strict=True):
        del exporter.steps[:STEPS]
        assert_like_the_log(trainer, exporter)


def test_a_training_inside_another(tmp_path: Path) -> None:
    """A callback that trains a second model leaves the first one's numbers alone."""
    outer, inner = RecordingExporter(), RecordingExporter()
    second = make_trainer(tmp_path / "inner", PrometheusCallback(inner))

    class TrainsAnother(TrainerCallback):
        def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 1:
                second.train()

    first = make_trainer(
        tmp_path, PrometheusCallback(outer), TrainsAnother(), gradient_accumulation_steps=2
    )
    first.train()

    assert_like_the_log(first, outer)
    assert_like_the_log(second, inner)


def test_one_callback_in_two_trainers(tmp_path: Path) -> None:
    """One page follows both trainings, and counts nothing twice."""
    exporter = RecordingExporter()
    callback = PrometheusCallback(exporter)
    first = make_trainer(tmp_path / "first", callback)
    second = make_trainer(tmp_path / "second", callback)

    first.train()
    second.train()

    assert steps_of(exporter) == [1, 2, 3, 4] * 2
    assert exporter.value("training_samples_total") == 2 * STEPS * 4
    del exporter.steps[:STEPS]
    assert_like_the_log(second, exporter)


def test_a_cell_run_twice_keeps_its_port(tmp_path: Path) -> None:
    """The second run takes over the port of the first, which is finished."""
    port = free_port()
    exporters = []

    def cell() -> None:
        callback = PrometheusCallback(address="127.0.0.1", port=port, port_tries=4)
        exporters.append(callback.exporter)
        make_trainer(tmp_path, callback, run_name=f"cell {len(exporters)}").train()

    try:
        cell()
        cell()

        assert [exporter.port for exporter in exporters] == [None, port]
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
            text = page.read().decode()
        assert 'run="cell 2"' in text
        assert 'run="cell 1"' not in text
    finally:
        for exporter in exporters:
            exporter.close()


def test_two_trainers_at_once_have_a_page_each(tmp_path: Path) -> None:
    """A run that is not over keeps its port; the next one takes the next."""
    port = free_port()
    exporters = [TrainingExporter(address="127.0.0.1", port=port, port_tries=4) for _ in range(2)]
    try:
        for exporter in exporters:
            make_trainer(tmp_path, PrometheusCallback(exporter))

        first, second = (exporter.port for exporter in exporters)
        assert first == port
        assert second is not None
        assert second > port
    finally:
        for exporter in exporters:
            exporter.close()


def test_resuming_from_a_checkpoint_made_without_us(tmp_path: Path) -> None:
    """The steps go on where they were, and later checkpoints are written."""
    make_trainer(tmp_path, max_steps=2, save_strategy="steps", save_steps=2).train()
    exporter = RecordingExporter()
    trainer = make_trainer(
        tmp_path, PrometheusCallback(exporter), save_strategy="steps", save_steps=1,
        eval_data=Rows(4), eval_strategy="steps", eval_steps=100, eval_on_start=True,
    )  # fmt: skip

    trainer.train(resume_from_checkpoint=str(tmp_path / "tiny-run" / "checkpoint-2"))

    assert steps_of(exporter) == [3, 4]
    assert exporter.evaluations[0].step == 2
    assert [signals.loss for signals in exporter.steps] == pytest.approx(
        [entry["loss"] for entry in step_logs(trainer)[2:]], rel=1e-5
    )
    assert (tmp_path / "tiny-run" / "checkpoint-4").is_dir()
    assert exporter.health.errors == dict.fromkeys(exporter.health.errors, 0)


def pickled(callback: PrometheusCallback) -> PrometheusCallback:
    return pickle.loads(pickle.dumps(callback))  # type: ignore[no-any-return]


@pytest.mark.parametrize("how", [copy.deepcopy, pickled])
def test_a_callback_can_be_copied(how: Any, tmp_path: Path) -> None:
    """The copy has the settings and no socket, and works like any other."""
    options = {"gradient_explosion": {"bound": 50.0}}
    callback = PrometheusCallback(
        address="127.0.0.1", port=0, detectors=options, profile="textbook", run="mine"
    )
    trainer = make_trainer(tmp_path, callback)
    trainer.train()

    duplicate = how(callback)
    other = make_trainer(tmp_path, duplicate)
    other.train()

    try:
        assert duplicate.exporter.config == callback.exporter.config
        assert duplicate.exporter.port not in {None, callback.exporter.port}
        assert duplicate.exporter.snapshot.totals.steps == STEPS
        assert callback.exporter.snapshot.totals.steps == STEPS
    finally:
        callback.exporter.close()
        duplicate.exporter.close()


def test_a_copied_trainer_trains_under_its_own_callback(tmp_path: Path) -> None:
    """A deep copy shares nothing with its original."""
    trainer = make_trainer(tmp_path, PrometheusCallback(serve=False))

    duplicate = copy.deepcopy(trainer)
    duplicate.train()

    counts = [
        callback.exporter.snapshot.totals.steps
        for owner in (trainer, duplicate)
        for callback in owner.callback_handler.callbacks
        if isinstance(callback, PrometheusCallback)
    ]
    assert counts == [0, STEPS]


# Ends


class Failing(Trainer):
    """Raises `error` at one place of its third step."""

    error: BaseException
    place = ""

    def _fail(self, place: str) -> None:
        if self.place == place and self.state.global_step >= 2:
            raise self.error

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        self._fail("training_step")
        return super().training_step(*args, **kwargs)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        self._fail("data")
        return super().get_batch_samples(*args, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        self._fail("evaluation")
        return super().evaluation_loop(*args, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> Any:
        self._fail("saving")
        return super()._save_checkpoint(*args, **kwargs)

    def log(self, *args: Any, **kwargs: Any) -> Any:
        self._fail("logging")
        return super().log(*args, **kwargs)


def failing(folder: Path, place: str, error: BaseException, *callbacks: Any) -> Failing:
    trainer = make_trainer(
        folder, *callbacks, trainer_class=Failing, eval_data=Rows(4), eval_strategy="steps",
        eval_steps=1, save_strategy="steps", save_steps=1,
    )  # fmt: skip
    assert isinstance(trainer, Failing)
    trainer.place, trainer.error = place, error
    return trainer


@pytest.mark.parametrize("place", ["training_step", "data", "evaluation", "saving", "logging"])
def test_an_exception_of_the_users_reaches_the_user(place: str, tmp_path: Path) -> None:
    """The very same object, and the run is crashed, with its class."""
    error, exporter = ZeroDivisionError("the user's own"), RecordingExporter()
    trainer = failing(tmp_path, place, error, PrometheusCallback(exporter))

    with pytest.raises(ZeroDivisionError) as raised:
        trainer.train()

    assert raised.value is error
    assert (exporter.status.state, exporter.status.failure) == ("crashed", "ZeroDivisionError")
    assert exporter.value("training_state", state="crashed") == 1
    assert steps_of(exporter) == [1, 2]
    assert exporter.health.errors == dict.fromkeys(exporter.health.errors, 0)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
def test_a_stop_is_no_crash_and_the_run_can_go_on(error: BaseException, tmp_path: Path) -> None:
    """Ctrl-C caught by the user, then training again: stopped, running, completed."""
    exporter, states = RecordingExporter(), []
    trainer = failing(tmp_path, "training_step", error, PrometheusCallback(exporter))

    with pytest.raises(type(error)) as raised:
        trainer.train()
    states.append(exporter.status.state)

    class Witness(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            states.append(exporter.status.state)

    trainer.add_callback(Witness())
    trainer.place = ""
    exporter.steps.clear()
    trainer.train()

    assert raised.value is error
    assert states == ["stopped", *["running"] * STEPS]
    assert (exporter.status.state, exporter.status.failure) == ("completed", None)
    assert_like_the_log(trainer, exporter)


def test_a_crash_is_seen_by_a_callback_that_came_late(tmp_path: Path) -> None:
    """Added after construction, it is not around the first train(), but around its steps."""
    exporter = RecordingExporter()
    trainer = failing(tmp_path, "training_step", MemoryError("planted"))
    trainer.add_callback(PrometheusCallback(exporter))

    with pytest.raises(MemoryError):
        trainer.train()

    assert (exporter.status.state, exporter.status.failure) == ("crashed", "MemoryError")


def test_a_failure_before_the_first_step(tmp_path: Path) -> None:
    """A train() that cannot begin is a crash too."""
    exporter = RecordingExporter()
    trainer = make_trainer(tmp_path, PrometheusCallback(exporter))

    with pytest.raises(ValueError, match="valid checkpoint"):
        trainer.train(resume_from_checkpoint=True)

    assert exporter.status.state == "crashed"


def test_stopping_early_is_completed(tmp_path: Path) -> None:
    """A callback that asks to stop ends the run as planned."""

    class Enough(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step == 2

    exporter = RecordingExporter()
    make_trainer(tmp_path, PrometheusCallback(exporter), Enough()).train()

    assert steps_of(exporter) == [1, 2]
    assert exporter.status.state == "completed"


# What is left behind


def test_nothing_keeps_a_trainer_alive(tmp_path: Path) -> None:
    """With callback and exporter still in use, trainer and model are freed when the user drops
    them."""
    exporter = RecordingExporter()
    callback = PrometheusCallback(exporter)
    trainer = make_trainer(tmp_path, callback, eval_data=Rows(4))
    trainer.train()
    trainer.evaluate()
    references = [weakref.ref(trainer), weakref.ref(trainer.model), weakref.ref(trainer.optimizer)]

    del trainer
    gc.collect()

    assert [reference() for reference in references] == [None] * 3


def test_looking_for_the_trainer_pins_no_variables(tmp_path: Path) -> None:
    """What a user's function drops is freed, though its frame lay above the hook."""
    trainer = make_trainer(tmp_path)
    callback = PrometheusCallback(serve=False)
    model = tiny_model()
    reference = weakref.ref(model)

    callback.on_train_begin(trainer.args, trainer.state, trainer.control)
    del model
    gc.collect()

    assert reference() is None


# Trainers that are not as usual


def test_a_trainer_that_never_trains(tmp_path: Path) -> None:
    """A subclass with a train() of its own, which calls no hook, does no harm and is no run."""

    class Idle(Trainer):
        def train(self, *args: Any, **kwargs: Any) -> Any:
            return "nothing"

    exporter = RecordingExporter()
    trainer = make_trainer(tmp_path, PrometheusCallback(exporter), trainer_class=Idle)

    assert trainer.train() == "nothing"
    assert exporter.status.state == "starting"
    assert exporter.steps == []


def test_hooks_that_are_called_by_no_trainer(
    tmp_path: Path, logs: pytest.LogCaptureFixture
) -> None:
    """A loop that only calls the hooks gets its steps counted; what is missing is said once."""
    exporter = RecordingExporter()
    callback = PrometheusCallback(exporter)
    trainer = make_trainer(tmp_path)
    told = (trainer.args, trainer.state, trainer.control)

    callback.on_init_end(*told)
    callback.on_train_begin(*told)
    for step in range(1, 4):
        callback.on_step_begin(*told)
        trainer.state.global_step = step
        callback.on_step_end(*told)
        callback.on_log(*told, logs=None)
    callback.on_train_end(*told)

    assert steps_of(exporter) == [1, 2, 3]
    assert [signals.loss for signals in exporter.steps] == [None] * 3
    assert exporter.health.errors["lifecycle"] == 2
    assert logs.text.count("no Trainer found above this callback") == 1


def test_a_model_with_nothing_to_train(tmp_path: Path) -> None:
    """torch's own error reaches the user, and it is the run that crashed, not we."""
    exporter = RecordingExporter()
    model = tiny_model()
    model.requires_grad_(False)
    trainer = make_trainer(tmp_path, PrometheusCallback(exporter), model=model)

    with pytest.raises(RuntimeError, match="does not require grad"):
        trainer.train()

    assert exporter.status.state == "crashed"
    assert exporter.health.errors == dict.fromkeys(exporter.health.errors, 0)


def test_data_without_a_length(tmp_path: Path) -> None:
    """A stream says nothing of epochs; the steps are there all the same."""
    trainer, exporter = trained(tmp_path, data=StreamedRows(16), max_steps=6)

    assert steps_of(exporter) == [1, 2, 3, 4, 5, 6]
    assert_like_the_log(trainer, exporter, steps=6)
