# SPDX-License-Identifier: Apache-2.0
"""Hugging Face Trainer: `callbacks=[PrometheusCallback()]`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from training_exporter import catalog
from training_exporter.requirements import needed_by

with needed_by(
    "PrometheusCallback", "torch", "transformers", install="'training-exporter[transformers]'"
):
    import torch  # noqa: F401 - transformers can be imported without it, and we cannot
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from training_exporter.device.recorder import StepRecorder
from training_exporter.exporter import TrainingExporter
from training_exporter.integrations.batches import samples_in
from training_exporter.integrations.checkpoints import Checkpoints
from training_exporter.integrations.cuda_memory import MemoryObserver
from training_exporter.integrations.evaluations import Evaluations
from training_exporter.integrations.gradient_norm import GradientNorm
from training_exporter.integrations.layer_watch import LayerWatch
from training_exporter.integrations.nan_watch import NanWatch
from training_exporter.integrations.optimizer import learning_rates, loss_scale
from training_exporter.integrations.step_work import StepWork
from training_exporter.integrations.trainer_settings import clip_threshold, identity
from training_exporter.integrations.trainer_wraps import PartOf, find_trainer, wrap_method

OWN_KEYS = frozenset({"loss", "grad_norm", "learning_rate", "epoch"})
"""Logged values that are exported as they really are on each step, so not as logged."""


class PrometheusCallback(TrainerCallback):
    """Exports what a Trainer does, each step, as it really is.

    Give it to the Trainer, `callbacks=[PrometheusCallback()]`, or call `exporter.attach(trainer)`.
    One that is added later, by `trainer.add_callback`, works too, but of crashes in the first
    `train()` it sees only those in a training step. It serves from the moment the Trainer is built
    until the process ends. It never changes what the Trainer computes or logs, and none of its own
    errors reaches the training.

    Args:
        exporter: the exporter to use; None makes one.
        settings: fields of ExporterConfig for the exporter it makes; they win over the
            `TRAINING_EXPORTER_*` environment variables.

    Raises:
        ValueError, TypeError: a setting that is out of range or unknown.
    """

    def __init__(self, exporter: TrainingExporter | None = None, **settings: Any) -> None:
        if exporter is not None and settings:
            raise TypeError(f"give either exporter or settings, not both: {', '.join(settings)}")
        self.exporter = exporter or TrainingExporter(**settings)
        self._recorder = StepRecorder()
        self._memory = MemoryObserver(self.exporter)
        self._layers = LayerWatch(self.exporter, self.exporter.config)
        self._nans = NanWatch(
            self.exporter, self.exporter.config, first_layer=self._layers.first_layer
        )
        self._work = StepWork(self.exporter)
        self._checkpoints = Checkpoints(self.exporter)
        self._evaluations = Evaluations(self.exporter)
        self._norm = GradientNorm(
            lambda norm: self._recorder.set_grad_norm(norm),
            self._layers, self._nans, self._work, self.exporter.boundary,
        )  # fmt: skip
        self._inside_train = False
        self._inside_step = False

    def __getstate__(self) -> dict[str, Any]:
        # Ray and copy.deepcopy take callbacks along; sockets and threads cannot travel.
        return {"config": self.exporter.config}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(TrainingExporter(state["config"]))  # type: ignore[misc]

    def attach(self, trainer: Any) -> None:
        """Begin to watch a trainer that has this callback, and to serve.

        Harmless when done already; done by itself when the trainer is built and when it trains.
        """
        self._open(trainer.args, trainer.model)
        self._wrap(trainer)

    def _wrap(self, trainer: Any) -> None:
        """Get between a trainer and the methods that know what callbacks are not told."""
        around_norm = PartOf(self, "_norm.around")
        around: dict[str, Callable[..., Any]] = {
            "train": self._around_train,
            "training_step": self._around_training_step,
            "compute_loss": self._around_loss,
            "evaluate": PartOf(self, "_evaluations.around"),
            "log": self._around_log,
            "_save_checkpoint": self._around_save,
            "_clip_grad_norm": around_norm,
            "_get_grad_norm": around_norm,
        }
        for name, wrapper in around.items():
            wrap_method(trainer, name, wrapper)
        accelerator = getattr(trainer, "accelerator", None)
        wrap_method(accelerator, "clip_grad_norm_", around_norm)
        wrap_method(accelerator, "gather", PartOf(self, "_work.forward.around_gather"))
        # What other callbacks do once a checkpoint is written, uploads say, is saving too.
        handler = getattr(trainer, "callback_handler", None)
        wrap_method(handler, "on_save", self._around_save)
        wrap_method(handler, "on_step_end", self._around_step_end)

    # Hooks, in the order of a run

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._open(args, kwargs.get("model"))
        self._wrap_caller()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._open(args, kwargs.get("model"))
        self._wrap_caller()
        self._checkpoints.begin(args, state)
        with self.exporter.boundary.at(catalog.LIFECYCLE_ERROR):
            self.exporter.set_state(catalog.RUNNING)
            self._recorder.discard()
            self._nans.start()
            self._layers.discard()
            # The model lies there already, or a step of `auto_find_batch_size` found no room.
            self._memory.observe()
            self._evaluations.start()
            self._inside_step = False
            self.exporter.timer.start()
        self._work.start(kwargs.get("model"), args, state)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        with self.exporter.boundary.at(catalog.STEP_ERROR):
            self._work.forward.data_arrived()
            self._norm.begin_step()
            self._nans.hand_on(self._recorder)
            model, optimizer = kwargs.get("model"), kwargs.get("optimizer")
            self._nans.begin_step(state.global_step + 1, model)
            self._layers.begin_step(state.global_step + 1, model, optimizer)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        own = self._work.own_part_of_optimizer(on_device=not self._norm.is_known)
        with own, self.exporter.boundary.at(catalog.STEP_ERROR):
            optimizer = kwargs["optimizer"]
            for group, rate in learning_rates(optimizer):
                self._recorder.set_learning_rate(group, rate)
            self._norm.before_update(kwargs["model"], optimizer)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        own = self._work.own_part_of_optimizer(on_device=self._layers.reads)
        with own, self.exporter.boundary.at(catalog.STEP_ERROR):
            self._layers.after_step()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        with self.exporter.boundary.at(catalog.STEP_ERROR):
            optimizer = kwargs.get("optimizer")
            self._recorder.set_loss_scale(loss_scale(getattr(optimizer, "scaler", None)))
            step_seconds, waited = self.exporter.timer.lap()
            self._recorder.finish(
                step=state.global_step,
                timestamp=self.exporter.clock(),
                clip_threshold=clip_threshold(args),
                skipped=getattr(optimizer, "step_was_skipped", None),
                epoch=state.epoch,
                max_steps=state.max_steps,
                step_seconds=step_seconds,
                data_wait_seconds=waited,
                memory_allocated_bytes=self._memory.observe(),
                **self._work.step_ends(state.global_step),
            )
            with self.exporter.boundary.at(catalog.STEP_ERROR):
                self._layers.collect()
            self._nans.close_step(state.global_step)
            self._nans.hand_on(self._recorder)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, object] | None = None,
        **kwargs: Any,
    ) -> None:
        with self.exporter.boundary.at(catalog.LOG_ERROR):
            logs = logs or {}
            if not self._evaluations.take_log(logs, state.global_step):
                extra = {name: value for name, value in logs.items() if name not in OWN_KEYS}
                self.exporter.observe_logged(extra)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        with self.exporter.boundary.at(catalog.STEP_ERROR):
            self._nans.hand_on(self._recorder)  # who saved weights has waited for the device
        self._checkpoints.save(args, state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._finish(None)

    # Around the trainer's methods

    def _around_train(self, train: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        self._inside_train = True
        self._checkpoints.training_with(args, kwargs)
        try:
            return train(*args, **kwargs)
        except BaseException as error:
            self._finish(error)
            raise
        finally:
            self._inside_train = False

    def _around_training_step(
        self, training_step: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> Any:
        if self._inside_step:  # somebody's own wrapper lies between two of ours
            return training_step(*args, **kwargs)
        with self.exporter.boundary.at(catalog.STEP_ERROR):
            # Before the step, in which a compute_loss may pop what it pleases from the inputs.
            inputs = kwargs["inputs"] if "inputs" in kwargs else args[1]
            self._recorder.add_tokens(self._work.count(inputs))
            self._recorder.add_samples(samples_in(inputs))
            self._nans.keep(inputs)
        self._work.batch_begins()
        self._inside_step = True
        try:
            with self._nans.modules():
                loss = training_step(*args, **kwargs)
        except BaseException as error:
            if not self._inside_train:  # added when train() ran already, so nobody else sees it
                self._finish(error)
            raise
        finally:
            self._inside_step = False
        self._work.batch_ends()
        with self.exporter.boundary.at(catalog.STEP_ERROR):
            self._recorder.add_loss(loss)
            self._nans.add_loss(loss)
        return loss

    def _around_loss(self, compute_loss: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        if not self._inside_step:  # an evaluation
            return compute_loss(*args, **kwargs)
        return self._work.forward.around_loss(compute_loss, *args, **kwargs)

    def _around_log(self, log: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        with self.exporter.paused(catalog.LOGGING):
            return log(*args, **kwargs)

    def _around_save(self, save: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        with self.exporter.paused(catalog.CHECKPOINT):
            return save(*args, **kwargs)

    def _around_step_end(self, step_end: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        control = step_end(*args, **kwargs)
        with self.exporter.boundary.at(catalog.STEP_ERROR):
            self.exporter.timer.idle()  # what other callbacks did until here was no wait for data
        return control

    # What they share

    def _open(self, args: TrainingArguments, model: object) -> None:
        with self.exporter.boundary.at(catalog.LIFECYCLE_ERROR):
            self._nans.write_below(args.output_dir)
            self.exporter.ending.write_below(args.output_dir)
            self.exporter.identify(**identity(args, model))
            self.exporter.set_nan_filter(bool(args.logging_nan_inf_filter))
        self._work.measure(model, args)
        self.exporter.start()

    def _wrap_caller(self) -> None:
        """Find the trainer that is calling a hook, and wrap its methods."""
        with self.exporter.boundary.at(catalog.LIFECYCLE_ERROR):
            trainer = find_trainer(self)
            if trainer is None:
                raise LookupError(
                    "no Trainer found above this callback: loss and gradient norm may stay "
                    "unknown; call exporter.attach(trainer)"
                )
            self._wrap(trainer)

    def _finish(self, error: BaseException | None) -> None:
        with self.exporter.boundary.at(catalog.LIFECYCLE_ERROR):
            # After an error the device may hang, and who waits for it would never end.
            self._nans.finish(self._recorder, error)
        with self.exporter.boundary.at(catalog.LIFECYCLE_ERROR):
            self._layers.finish(error)  # now, as a report asks for the first layer
        self._work.finish(error)
        with self.exporter.boundary.at(catalog.LIFECYCLE_ERROR):
            self.exporter.finish(error)
