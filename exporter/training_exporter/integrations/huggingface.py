# SPDX-License-Identifier: Apache-2.0
"""Hugging Face Trainer: `callbacks=[PrometheusCallback()]`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from training_exporter import catalog
from training_exporter.device.gradients import global_norm
from training_exporter.device.recorder import StepRecorder
from training_exporter.exporter import TrainingExporter
from training_exporter.integrations.batches import samples_in
from training_exporter.integrations.cuda_memory import MemoryObserver
from training_exporter.integrations.layer_watch import LayerWatch
from training_exporter.integrations.nan_watch import NanWatch
from training_exporter.integrations.optimizer import learning_rates, loss_scale, unscaled
from training_exporter.integrations.step_work import StepWork
from training_exporter.integrations.trainer_settings import clip_threshold, run_name
from training_exporter.integrations.trainer_wraps import find_trainer, wrap_method

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
        self._norm_seen = False
        self._inside_train = False
        self._inside_step = False
        self._inside_norm = False
        self._evaluations_open = 0
        self._evaluations_reported = 0
        self._evaluation_logs: dict[str, object] = {}
        self._evaluated_step: int | None = None

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
        around: dict[str, Callable[..., Any]] = {
            "train": self._around_train,
            "training_step": self._around_training_step,
            "evaluate": self._around_evaluate,
            "log": self._around_log,
            "_save_checkpoint": self._around_save,
            "_clip_grad_norm": self._around_grad_norm,
            "_get_grad_norm": self._around_grad_norm,
        }
        for name, wrapper in around.items():
            wrap_method(trainer, name, wrapper)
        accelerator = getattr(trainer, "accelerator", None)
        wrap_method(accelerator, "clip_grad_norm_", self._around_grad_norm)
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
        with self.exporter.boundary.at(catalog.LIFECYCLE_ERROR):
            self.exporter.set_state(catalog.RUNNING)
            self._recorder.discard()
            self._nans.discard()
            self._layers.discard()
            # The model lies there already, or a step of `auto_find_batch_size` found no room.
            self._memory.observe()
            self._inside_step, self._evaluations_open = False, 0
            self.exporter.timer.start()
        self._work.start(kwargs.get("model"), args, state)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        with self.exporter.boundary.at(catalog.STEP_ERROR):
            self.exporter.timer.data_arrived()
            self._norm_seen = False
            self._nans.hand_on(self._recorder)
            model, optimizer = kwargs.get("model"), kwargs.get("optimizer")
            self._nans.begin_step(state.global_step + 1, model)
            self._layers.begin_step(state.global_step + 1, model, optimizer)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        with self._work.own_part_of_optimizer(), self.exporter.boundary.at(catalog.STEP_ERROR):
            optimizer = kwargs["optimizer"]
            for group, rate in learning_rates(optimizer):
                self._recorder.set_learning_rate(group, rate)
            if not self._norm_seen:  # nothing clips, so the gradients are still what they were
                norm = global_norm(kwargs["model"].parameters())
                self._nans.before_update(norm, clipped=False)
                scale = loss_scale(getattr(optimizer, "scaler", None))
                self._recorder.set_grad_norm(unscaled(norm, scale))
                self._layers.before_clipping()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        with self._work.own_part_of_optimizer(), self.exporter.boundary.at(catalog.STEP_ERROR):
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
            if self._evaluations_open:
                self._evaluation_logs.update(logs)
                self._evaluated_step = state.global_step
                return
            extra = {name: value for name, value in logs.items() if name not in OWN_KEYS}
            self.exporter.observe_logged(extra)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._finish(None)

    # Around the trainer's methods

    def _around_train(self, train: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        self._inside_train = True
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

    def _around_grad_norm(self, grad_norm: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        if self._inside_norm:  # the methods that know the norm call each other
            norm = grad_norm(*args, **kwargs)
            self._see_norm(norm, outermost=False)
            return norm
        self._nans.before_clipping()
        with self._work.own_part_of_optimizer(), self.exporter.boundary.at(catalog.STEP_ERROR):
            self._layers.before_clipping()
        self._inside_norm = True
        try:
            norm = grad_norm(*args, **kwargs)
        finally:
            self._inside_norm = False
        self._see_norm(norm, outermost=True)
        return norm

    def _see_norm(self, norm: Any, *, outermost: bool) -> None:
        with self._work.own_part_of_optimizer(), self.exporter.boundary.at(catalog.STEP_ERROR):
            self._recorder.set_grad_norm(norm)
            self._norm_seen = self._norm_seen or norm is not None
            if outermost:
                self._nans.before_update(norm, clipped=True)

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

    def _around_evaluate(self, evaluate: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        self._evaluation_logs = {}
        reported = self._evaluations_reported
        self._evaluations_open += 1
        try:
            with self.exporter.paused(catalog.EVALUATION):
                results = evaluate(*args, **kwargs)
        finally:
            self._evaluations_open -= 1
        with self.exporter.boundary.at(catalog.EVALUATION_ERROR):
            if self._evaluations_reported == reported:  # else it went over sets, each reported
                prefix = kwargs.get("metric_key_prefix", args[2] if len(args) > 2 else "eval")
                self._report_evaluation(prefix, {**self._evaluation_logs, **(results or {})})
        return results

    # What they share

    def _open(self, args: TrainingArguments, model: object) -> None:
        with self.exporter.boundary.at(catalog.LIFECYCLE_ERROR):
            self._nans.write_below(args.output_dir)
            self.exporter.identify(
                run=run_name(args),
                rank=args.process_index,
                framework="transformers",
                model=type(model).__name__,
                world_size=args.world_size,
            )
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
            self._layers.finish(error)
        with self.exporter.boundary.at(catalog.LIFECYCLE_ERROR):
            # After an error the device may hang, and who waits for it would never end.
            self._nans.finish(self._recorder, error)
        self._work.finish(error)
        with self.exporter.boundary.at(catalog.LIFECYCLE_ERROR):
            self.exporter.finish(error)

    def _report_evaluation(self, prefix: str, results: Mapping[str, object]) -> None:
        self._evaluations_reported += 1
        own = {
            name.removeprefix(f"{prefix}_"): value
            for name, value in results.items()
            if name != "epoch"
        }
        self.exporter.observe_evaluation(
            own, dataset=prefix.removeprefix("eval_"), step=self._evaluated_step
        )
