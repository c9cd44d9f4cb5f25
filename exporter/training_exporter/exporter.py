# SPDX-License-Identifier: Apache-2.0
"""`TrainingExporter`: the parts put together, and the face that users and integrations see."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from time import perf_counter, time
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import finalize

from training_exporter import catalog
from training_exporter.config import DETECTORS_VARIABLE, DetectorOptions, ExporterConfig
from training_exporter.console import install_fallback
from training_exporter.detectors import build_detectors
from training_exporter.detectors.base import Detector
from training_exporter.device.memory import counter_start
from training_exporter.gpu.own import OwnGpus
from training_exporter.gpu.sampler import GpuSampler
from training_exporter.gpu.watch import GpuWatch, Plan
from training_exporter.serving import Serving
from training_exporter.sinks.sink import Sink
from training_exporter.status import ExporterHealth, StatusBoard
from training_exporter.watching import RunWatch

if TYPE_CHECKING:
    import torch
    from prometheus_client import CollectorRegistry

    from training_exporter.integrations.torch_loop import TorchLoop

_T = TypeVar("_T")


class TrainingExporter(RunWatch):
    """Watches one training run and serves what it sees.

    As a context manager it serves from the beginning of the block, and tells completed, stopped and
    crashed runs apart by how the block ends. The page with the end on it stays up until `close`,
    the end of the process, or the next run that wants the port. Once it runs, no trouble of its own
    reaches the training: it is logged once, counted in `training_exporter_errors_total` and stays
    here.

    Args:
        config: the settings; None reads the environment, with `settings` as keywords over it.
        detectors: the detectors to run instead of those of the configured profile; a mapping is
            the setting of that name, options of the profile's own detectors.
        registry: the registry to serve. Metrics of your own that you register there are on the
            same page.
        sinks: who else is told of the run, such as W&B or a chat; see docs/sinks.md.
        clock: returns Unix time in seconds.
        settings: fields of ExporterConfig.

    Raises:
        ValueError, TypeError: a setting that is out of range or unknown.
    """

    def __init__(
        self,
        config: ExporterConfig | None = None,
        *,
        detectors: Iterable[Detector] | DetectorOptions | None = None,
        registry: CollectorRegistry | None = None,
        sinks: Iterable[Sink] | None = None,
        clock: Callable[[], float] = time,
        **settings: Any,
    ) -> None:
        install_fallback()
        if isinstance(detectors, str):
            raise ValueError(
                "detectors must be a mapping such as {'loss_spike': {'jump': 2}} or a list of "
                f"detectors; a text such as {detectors!r} is for {DETECTORS_VARIABLE}"
            )
        if isinstance(detectors, Mapping):
            settings["detectors"], detectors = detectors, None
        if config is not None and settings:
            raise TypeError(f"give either config or settings, not both: {', '.join(settings)}")
        by_variable = config is None and "detectors" not in settings
        source = DETECTORS_VARIABLE if by_variable else "detectors"
        config = config or ExporterConfig.from_environ(os.environ, **settings)
        if detectors is None:
            detectors = _configured_detectors(config, source)
        super().__init__(config, detectors, clock, sinks)
        self._gpus = _gpu_sampler(self.config, self._board, self.health)
        self._board.gpus = self._gpus.source
        with self.boundary.at(catalog.LIFECYCLE_ERROR):
            counter_start(self)  # now, since a run that runs out of memory at once is read after it
        self._loop: TorchLoop | None = None
        self.registry = self._registered(registry)
        self._serving = Serving(
            self.config, self.boundary, self.registry, self._board, self.monitor, self._sinks
        )
        # Not at exit: then the process ends, and the port with it.
        finalize(self, self._serving.abandon).atexit = False

    def _registered(self, registry: CollectorRegistry | None) -> CollectorRegistry:
        """The registry with our collectors in it, instead of those of an exporter before us."""
        # Here and not above: prometheus_client takes longer to import than all else together, and
        # who imports this package has not asked for an exporter yet.
        from training_exporter.collectors import registered

        return registered(registry, self._board, self.monitor, self.health)

    @property
    def url(self) -> str | None:
        """Address of the landing page for a person, None while nothing is served."""
        return self._serving.server.url if self._serving.server else None

    @property
    def port(self) -> int | None:
        """The port that is served, None while none is."""
        return self._serving.server.port if self._serving.server else None

    # Serving

    def identify(self, *, run: str | None = None, rank: int | None = None, **info: object) -> None:
        super().identify(run=run, rank=rank, **info)
        self._serving.announce()

    def start(self) -> TrainingExporter:
        """Begin to serve and to read the GPUs, as far as that is configured and not done yet.

        A port that is taken means the next free one. When none can be had, a warning says so and
        the training goes on unserved.

        Raises:
            OSError: no port could be had, with `strict` only.
        """
        self._recollection.recall(self.status.run, self.status.rank)  # before the first page
        self._serving.start()
        if self.config.gpu_metrics:
            with self.boundary.at(catalog.GPU_ERROR):
                self._gpus.start()
        return self

    def close(self, *, linger: bool = False) -> None:
        """Stop serving and free the port, and read the GPUs no more. May be called twice, and
        `start` may follow.

        Args:
            linger: first stay until those who scrape have seen the end of the run, as a process
                does by itself when it ends.
        """
        if linger:
            self._serving.await_last_scrape()
        self._serving.close(cleanup=linger)
        self._gpus.close()
        if self.status.state in catalog.FINAL_STATES:
            self._recollection.close()
            if self._sinks is not None:
                self._sinks.leave()

    def __enter__(self) -> TrainingExporter:
        self.set_state(catalog.STARTING)
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.finish(error)

    def finish(self, error: BaseException | None = None) -> None:
        if isinstance(error, KeyboardInterrupt) and self._was_over_before_ctrl_c:
            return
        with self.boundary.at(catalog.LIFECYCLE_ERROR):
            loop = self._loop
            if loop is None and error is not None and "torch" in sys.modules:
                loop = self._hand_loop()  # in a Trainer, or before a first step too large
            if loop is not None:
                loop.finish(error)
        super().finish(error)
        self._serving.tell_end()
        if self._sinks is not None:
            self._sinks.wait()

    @property
    def _was_over_before_ctrl_c(self) -> bool:
        """Whether Ctrl-C only ended the wait for the sinks. A Trainer's `train`, or the block, is
        then left by it as if the run had been stopped."""
        over = self.status.state in catalog.FINAL_STATES
        return over and self._sinks is not None and self._sinks.interrupted

    # A training loop written by hand

    def step(self, **values: Any) -> None:
        """Close one optimiser step of a hand-written loop. Never raises, never waits for a device.

        Takes what `integrations.torch_loop.TorchLoop.step` takes, all of it optional: `loss`,
        `grad_norm`, `learning_rate` (a number, rates by group, an optimiser or a scheduler),
        `tokens`, `samples`, `epoch`, `step`, `max_steps`, `loss_scale` (a number or the gradient
        scaler), `skipped`, `data_wait_seconds`, `clip_threshold`, `positions`, `flops`, `inputs`.
        Tensors are read when they are there, which on a GPU is some steps later.
        """
        if self.status.state == catalog.STARTING or self.status.state in catalog.FINAL_STATES:
            self.set_state(catalog.RUNNING)
        with self.boundary.at(catalog.STEP_ERROR):
            self._hand_loop().step(**values)

    def add_micro_batch(self, **values: Any) -> None:
        """Add a micro-batch (`loss`, `tokens`, `samples`, `inputs`) to the step that comes."""
        with self.boundary.at(catalog.STEP_ERROR):
            self._hand_loop().add_micro_batch(**values)

    def clip_grad_norm_(
        self,
        parameters: torch.Tensor | Iterable[torch.Tensor],
        max_norm: float,
        norm_type: float = 2.0,
        error_if_nonfinite: bool = False,
        foreach: bool | None = None,
    ) -> torch.Tensor:
        """`torch.nn.utils.clip_grad_norm_`, of which norm and threshold are recorded.

        Raises only what torch's own function raises.
        """
        return self._hand_loop().clip_grad_norm_(
            parameters, max_norm, norm_type, error_if_nonfinite, foreach
        )

    def observe_gradients(self, model_or_parameters: Any) -> None:
        """Record the global norm of the gradients; to be called before they are clipped."""
        with self.boundary.at(catalog.STEP_ERROR):
            self._hand_loop().observe_gradients(model_or_parameters)

    def watch_model(self, model: torch.nn.Module) -> None:
        """Say which model is trained, before the first step: then there are metrics of its layers,
        and a report on a NaN can look at its weights."""
        with self.boundary.at(catalog.LIFECYCLE_ERROR):
            self._hand_loop().watch_model(model)

    def data(self, loader: Iterable[_T]) -> Iterator[_T]:
        """Iterate over a data loader and count the time spent waiting for it."""
        started = perf_counter()
        batches = iter(loader)  # starts the loader's workers
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            self.timer.waited(perf_counter() - started)
            yield batch
            started = perf_counter()

    def evaluating(self) -> AbstractContextManager[None]:
        """`with exporter.evaluating():` around an evaluation; report it by `observe_evaluation`."""
        return self.paused(catalog.EVALUATION)

    def saving(self) -> AbstractContextManager[None]:
        """`with exporter.saving():` around the writing of a checkpoint."""
        return self.paused(catalog.CHECKPOINT)

    def state_dict(self) -> dict[str, Any]:
        """Averages, what detectors have learnt and curves after the last step, to be saved in a
        checkpoint of your own: values that JSON and `torch.save` can hold. On one rank is enough.

        A Trainer needs none of this: it is saved beside its checkpoints.
        """
        return self.resumption.state(self.ended_step)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the step that a state is of, on each rank. Never raises: one that is of
        another run or number of ranks, or none at all, is a warning, and all begins anew."""
        with self.boundary.at(catalog.LIFECYCLE_ERROR):
            step = self.resumption.go_on(lambda: state, None)
            if step is not None:
                self.ended_step = step

    def _hand_loop(self) -> TorchLoop:
        if self._loop is None:
            # The one arrow that points up, and only when it is called: users get one object for
            # both kinds of loop, and who has no torch never loads what deals with it.
            from training_exporter.integrations.torch_loop import TorchLoop

            self._loop = TorchLoop(
                self, timer=self.timer, wall_clock=self.clock, config=self.config
            )
        return self._loop

    def attach(self, trainer: Any) -> Any:
        """Watch a Hugging Face Trainer; the same as giving it a `PrometheusCallback`.

        Returns:
            the callback that was added to the trainer, now or by an earlier call.
        """
        from training_exporter.integrations.huggingface import PrometheusCallback

        for known in trainer.callback_handler.callbacks:
            if isinstance(known, PrometheusCallback) and known.exporter is self:
                return known
        callback = PrometheusCallback(self)
        trainer.add_callback(callback)
        callback.attach(trainer)
        return callback


def _configured_detectors(config: ExporterConfig, source: str) -> list[Detector]:
    """The detectors of the settings; an error names where their options came from."""
    try:
        return build_detectors(config.profile, config.detectors)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def _gpu_sampler(config: ExporterConfig, board: StatusBoard, health: ExporterHealth) -> GpuSampler:
    """What reads the GPUs; holds the board and not the exporter."""
    plan = Plan(config.gpus, config.gpu_interval, config.gpu_pcie)

    def new_watch() -> GpuWatch:
        own = OwnGpus(config.gpus, used=lambda: [each.device for each in board.memory])
        count_error = partial(health.count_error, catalog.GPU_ERROR)
        return GpuWatch(plan, own, on_error=count_error, on_cost=health.add_gpu_sample)

    return GpuSampler(new_watch)
