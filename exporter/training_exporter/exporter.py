# SPDX-License-Identifier: Apache-2.0
"""`TrainingExporter`: the parts put together, and the face that users and integrations see."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from math import isfinite
from time import perf_counter, time
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar
from weakref import WeakKeyDictionary, finalize

from training_exporter import catalog
from training_exporter.boundary import StepBoundary
from training_exporter.config import DetectorOptions, ExporterConfig
from training_exporter.console import install_fallback
from training_exporter.detectors import build_detectors
from training_exporter.detectors.base import Detector
from training_exporter.gpu.own import OwnGpus
from training_exporter.gpu.readings import AllocatorReading, GpuReadings
from training_exporter.gpu.sampler import GpuSampler
from training_exporter.gpu.watch import GpuWatch, Plan
from training_exporter.lifecycle.last_words import conclude
from training_exporter.monitor import TrainingMonitor
from training_exporter.serving import Serving
from training_exporter.signals import Evaluation, StepSignals
from training_exporter.snapshot import Anomaly, Snapshot
from training_exporter.status import ExporterHealth, RunStatus, StatusBoard
from training_exporter.timing import StepTimer
from training_exporter.values import clean_text, merge_capped, numbers_of

if TYPE_CHECKING:
    import torch
    from prometheus_client import CollectorRegistry

    from training_exporter.collectors.guard import GuardedCollectors
    from training_exporter.integrations.torch_loop import TorchLoop

logger = logging.getLogger("training_exporter")

_T = TypeVar("_T")
_STATE_DURING = {catalog.EVALUATION: catalog.EVALUATING, catalog.CHECKPOINT: catalog.SAVING}


class TrainingExporter:
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
        clock: returns Unix time in seconds.
        settings: fields of ExporterConfig.

    Raises:
        ValueError, TypeError: a setting that is out of range or unknown.
    """

    _collectors: ClassVar[WeakKeyDictionary[CollectorRegistry, GuardedCollectors]] = (
        WeakKeyDictionary()
    )

    def __init__(
        self,
        config: ExporterConfig | None = None,
        *,
        detectors: Iterable[Detector] | DetectorOptions | None = None,
        registry: CollectorRegistry | None = None,
        clock: Callable[[], float] = time,
        **settings: Any,
    ) -> None:
        install_fallback()
        if isinstance(detectors, Mapping):
            settings["detectors"], detectors = detectors, None
        if config is not None and settings:
            raise TypeError(f"give either config or settings, not both: {', '.join(settings)}")
        self.config = config or ExporterConfig.from_environ(os.environ, **settings)
        if detectors is None:
            detectors = build_detectors(self.config.profile, self.config.detectors)
        self.monitor = TrainingMonitor(detectors, ema_beta=self.config.ema_beta)
        self.health = ExporterHealth()
        self.boundary = StepBoundary(self.health)
        self.timer = StepTimer()
        self.clock = clock
        self._board = StatusBoard(_first_status(self.config))
        self._gpus = _gpu_sampler(self.config, self._board, self.health)
        self._board.gpus = self._gpus.source
        self._announced: tuple[Anomaly, ...] = ()
        self._loop: TorchLoop | None = None
        self.registry = self._registered(registry)
        self._serving = Serving(
            self.config, self.boundary, self.registry, self._board, self.monitor
        )
        # Not at exit: then the process ends, and the port with it.
        finalize(self, self._serving.abandon).atexit = False

    def _registered(self, registry: CollectorRegistry | None) -> CollectorRegistry:
        """The registry with our collectors in it, instead of those of an exporter before us."""
        # Here and not above: prometheus_client takes longer to import than all else together, and
        # who imports this package has not asked for an exporter yet.
        from prometheus_client import CollectorRegistry

        from training_exporter.collectors import collectors_of

        if registry is None:
            registry = CollectorRegistry()
        before = TrainingExporter._collectors.pop(registry, None)
        if before is not None:
            registry.unregister(before)
        ours = collectors_of(self._board, self.monitor, self.health)
        registry.register(ours)
        TrainingExporter._collectors[registry] = ours
        return registry

    # What there is to see

    @property
    def status(self) -> RunStatus:
        """What is known about the run beside its steps."""
        return self._board.status

    @status.setter
    def status(self, status: RunStatus) -> None:
        self._board.status = status

    @property
    def snapshot(self) -> Snapshot:
        """The state after the last step."""
        return self.monitor.snapshot

    @property
    def memory(self) -> tuple[AllocatorReading, ...]:
        """What torch's allocator held at the last step, on each CUDA device in use."""
        return self._board.memory

    @property
    def gpu_readings(self) -> GpuReadings:
        """What is known of the GPUs at this moment; nothing before `start`."""
        return self._board.gpus()

    @property
    def url(self) -> str | None:
        """Address of the landing page for a person, None while nothing is served."""
        return self._serving.server.url if self._serving.server else None

    @property
    def port(self) -> int | None:
        """The port that is served, None while none is."""
        return self._serving.server.port if self._serving.server else None

    # Serving

    def start(self) -> TrainingExporter:
        """Begin to serve and to read the GPUs, as far as that is configured and not done yet.

        A port that is taken means the next free one. When none can be had, a warning says so and
        the training goes on unserved.

        Raises:
            OSError: no port could be had, with `strict` only.
        """
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
            self._serving.last_words()
        self._serving.close()
        self._gpus.close()

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

    # The run

    def identify(self, *, run: str | None = None, rank: int | None = None, **info: object) -> None:
        """Say what this run is: its default name and rank, and labels of `training_run_info`.

        A name or rank that the user configured wins.

        Raises:
            ValueError: `training_run_info` has no such label.
        """
        unknown = set(info) - set(catalog.RUN_INFO.labels)
        if unknown:
            valid = ", ".join(catalog.RUN_INFO.labels)
            raise ValueError(f"training_run_info has the labels {valid}, not {', '.join(unknown)}")
        described = {name: clean_text(value) for name, value in info.items()}
        status = self.status._replace(info=MappingProxyType({**self.status.info, **described}))
        if run and self.config.run is None:
            status = status._replace(run=clean_text(run))
        if rank is not None and self.config.rank is None:
            status = status._replace(rank=rank)
        self.status = status

    def set_state(self, state: str, *, failure: str | None = None) -> None:
        """Move the run to a state.

        Args:
            state: one of catalog.RUN_STATES.
            failure: class of the exception that ended the run.
        """
        if state not in catalog.RUN_STATES:
            valid = ", ".join(catalog.RUN_STATES)
            raise ValueError(f"a run's state is one of {valid}, not {state!r}")
        status = self.status._replace(state=state, failure=failure)
        if state == catalog.RUNNING:
            status = status._replace(running_since=self.clock())
        self.status = status

    def set_nan_filter(self, active: bool) -> None:
        """Say whether the trainer's own log hides NaN and Inf losses."""
        self.status = self.status._replace(nan_filter=active)

    def finish(self, error: BaseException | None = None) -> None:
        """End the run: completed without an error, stopped by Ctrl-C or sys.exit, else crashed."""
        with self.boundary.at(catalog.LIFECYCLE_ERROR):
            loop = self._loop
            if loop is None and error is not None and "torch" in sys.modules:
                loop = self._hand_loop()  # in a Trainer, or before a first step too large
            if loop is not None:
                loop.finish(error)
        conclude(self._board, self.monitor, error)

    @contextmanager
    def paused(self, activity: str) -> Iterator[None]:
        """While the training does something else, one of catalog.PAUSES.

        Its time is counted in `training_pause_seconds_total` and never as step time; during
        evaluation and saving the run is in that state. Raises only what is raised inside it.
        """
        pause = ExitStack()
        with self.boundary.at(catalog.LIFECYCLE_ERROR):
            pause.enter_context(self._pause(activity))
        try:
            yield
        finally:
            with self.boundary.at(catalog.LIFECYCLE_ERROR):
                pause.close()

    @contextmanager
    def _pause(self, activity: str) -> Iterator[None]:
        before = self.status
        if before.state not in catalog.FINAL_STATES:
            self.set_state(_STATE_DURING.get(activity, before.state))
        try:
            with self.timer.pause(lambda seconds: self._count_pause(activity, seconds)):
                yield
        finally:
            self.set_state(before.state, failure=before.failure)

    def _count_pause(self, activity: str, seconds: float) -> None:
        pauses = {**self.status.pauses, activity: self.status.pauses[activity] + seconds}
        self.status = self.status._replace(pauses=MappingProxyType(pauses))

    # Observations

    def observe(self, signals: StepSignals) -> None:
        """Take in one optimiser step. Never raises."""
        started = perf_counter()
        try:
            self.monitor.observe(signals)
            if self.monitor.recent is not self._announced:
                self._announce(self.monitor.recent)
        except Exception as error:  # the step's boundary, written out because this is the hot path
            self.boundary.report(catalog.OBSERVE_ERROR, error)
        self.health.observe_seconds += perf_counter() - started

    def observe_evaluation(
        self, results: Mapping[str, object], *, dataset: str = "eval", step: int | None = None
    ) -> None:
        """Take in the results of an evaluation. Never raises.

        Args:
            results: its numeric results, "loss" among them; what is not a number is left out.
            dataset: name of the data set.
            step: optimiser step after which it ran; None is the last one seen.
        """
        with self.boundary.at(catalog.EVALUATION_ERROR):
            values = numbers_of(results)
            loss = values.pop("loss", None)
            snapshot = self.snapshot
            evaluations = snapshot.evaluations.items()
            others = sum([len(other.metrics) for name, other in evaluations if name != dataset])
            room = max(0, self.config.max_logged_values - others)
            metrics, dropped = merge_capped({}, values, room)
            self.health.dropped_series += dropped
            if step is None:
                step = snapshot.signals.step if snapshot.signals else 0
            evaluation = Evaluation(step, self.clock(), clean_text(dataset), loss, metrics)
            self.monitor.observe_evaluation(evaluation)
            self._announce(self.monitor.recent)

    def observe_logged(self, values: Mapping[str, object]) -> None:
        """Take in numbers that the trainer logged; what is not a number is left out. Never
        raises."""
        with self.boundary.at(catalog.LOG_ERROR):
            logged, dropped = merge_capped(
                self.status.logged, numbers_of(values), self.config.max_logged_values
            )
            self.health.dropped_series += dropped
            self.status = self.status._replace(logged=logged)

    def observe_memory(self, readings: tuple[AllocatorReading, ...]) -> None:
        """Take in what torch's allocator holds, one reading for each device. Never raises."""
        self._board.memory = readings

    def count_dropped(self, steps: int, series: int = 0) -> None:
        """Count steps that went unseen because no device row was free, and values that got no
        series because there were too many."""
        self.health.dropped_observations += steps
        self.health.dropped_series += series

    def _announce(self, recent: tuple[Anomaly, ...]) -> None:
        """Log the anomalies that are new."""
        announced, self._announced = self._announced, recent
        for anomaly in recent:
            if any(anomaly is other for other in announced):
                continue
            meaning = catalog.ANOMALY_KINDS.get(anomaly.kind, "found by a detector of yours")
            logger.warning(
                "%s at step %d: %s%s", anomaly.kind, anomaly.step, meaning, _measured(anomaly)
            )

    # A training loop written by hand

    def step(self, **values: Any) -> None:
        """Close one optimiser step of a hand-written loop. Never raises, never waits for a device.

        Takes what `integrations.torch_loop.TorchLoop.step` takes, all of it optional: `loss`,
        `grad_norm`, `learning_rate` (a number, rates by group, an optimiser or a scheduler),
        `tokens`, `samples`, `epoch`, `step`, `max_steps`, `loss_scale` (a number or the gradient
        scaler), `skipped`, `data_wait_seconds`, `clip_threshold`. Tensors are read when they are
        there, which on a GPU is some steps later.
        """
        if self.status.state == catalog.STARTING or self.status.state in catalog.FINAL_STATES:
            self.set_state(catalog.RUNNING)
        with self.boundary.at(catalog.STEP_ERROR):
            self._hand_loop().step(**values)

    def add_micro_batch(self, **values: Any) -> None:
        """Add a micro-batch (`loss`, `tokens`, `samples`) to the step that `step` will close."""
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

    def _hand_loop(self) -> TorchLoop:
        if self._loop is None:
            # The one arrow that points up, and only when it is called: users get one object for
            # both kinds of loop, and who has no torch never loads what deals with it.
            from training_exporter.integrations.torch_loop import TorchLoop

            self._loop = TorchLoop(self, timer=self.timer, wall_clock=self.clock)
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


def _measured(anomaly: Anomaly) -> str:
    """The two numbers that say so, where there are such."""
    if not isfinite(anomaly.threshold):
        return ""
    return f" (value {anomaly.value:.6g}, threshold {anomaly.threshold:.6g})"


def _gpu_sampler(config: ExporterConfig, board: StatusBoard, health: ExporterHealth) -> GpuSampler:
    """What reads the GPUs; holds the board and not the exporter."""
    plan = Plan(config.gpus, config.gpu_interval, config.gpu_pcie)

    def new_watch() -> GpuWatch:
        own = OwnGpus(config.gpus, used=lambda: [each.device for each in board.memory])
        count_error = partial(health.count_error, catalog.GPU_ERROR)
        return GpuWatch(plan, own, on_error=count_error, on_cost=health.add_gpu_sample)

    return GpuSampler(new_watch)


def _first_status(config: ExporterConfig) -> RunStatus:
    rank = os.environ.get("RANK", "")
    info = {
        "profile": config.profile,
        "host": socket.gethostname(),
        "world_size": os.environ.get("WORLD_SIZE", "1"),
    }
    return RunStatus(
        run=clean_text(config.run or "training"),
        rank=config.rank if config.rank is not None else int(rank) if rank.isdecimal() else 0,
        info=MappingProxyType(info),
    )
