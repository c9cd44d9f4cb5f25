# SPDX-License-Identifier: Apache-2.0
"""`RunWatch`: one run as it is seen, and everything that can be told about it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from threading import get_ident
from time import perf_counter
from types import MappingProxyType

from training_exporter import catalog
from training_exporter.announcing import Announcer
from training_exporter.boundary import StepBoundary
from training_exporter.config import ExporterConfig
from training_exporter.detectors.base import Detector
from training_exporter.ending import Ending
from training_exporter.gpu.readings import AllocatorReading, GpuReadings
from training_exporter.layers.histograms import RawHistograms
from training_exporter.layers.magnitudes import Magnitudes
from training_exporter.layers.shown import LayerBoard, LayerState
from training_exporter.lifecycle.beginning import first_status, info_labels
from training_exporter.lifecycle.blackbox_reader import Box
from training_exporter.lifecycle.last_words import conclude
from training_exporter.lifecycle.recollection import Recollection
from training_exporter.lifecycle.resume import Resumption
from training_exporter.monitor import TrainingMonitor
from training_exporter.signals import Evaluation, StepSignals
from training_exporter.sinks.feed import SinkFeed, listed
from training_exporter.sinks.sink import Sink
from training_exporter.snapshot import Snapshot
from training_exporter.status import (
    ExporterHealth,
    ForwardPasses,
    ReportNote,
    RunStatus,
    StatusBoard,
)
from training_exporter.timing.step_timer import StepTimer
from training_exporter.values import clean_text, merge_capped, numbers_of

_STATE_DURING = {catalog.EVALUATION: catalog.EVALUATING, catalog.CHECKPOINT: catalog.SAVING}


class RunWatch:
    """Takes in what happens in a run, judges it, and holds what there is to see.

    No trouble of its own reaches the training: it is logged once, counted in
    `training_exporter_errors_total` and stays here.

    Args:
        config: the settings.
        detectors: the detectors to run.
        clock: returns Unix time in seconds.
        sinks: who else is told.

    Attributes:
        ended_step: the last step that ended on the host; its values may still be on their way.
        ending: tells the summary of the run, once it has ended.
        resumption: saves where the run is, and goes on from there.
    """

    def __init__(
        self,
        config: ExporterConfig,
        detectors: Iterable[Detector],
        clock: Callable[[], float],
        sinks: Iterable[Sink] | None = None,
    ) -> None:
        self.config = config
        self.monitor = TrainingMonitor(detectors, ema_beta=config.ema_beta)
        self.health = ExporterHealth()
        self.boundary = StepBoundary(self.health)
        self.timer = StepTimer()
        self.clock = clock
        self.ended_step = 0
        self._board = StatusBoard(first_status(config, os.environ))
        self._board.layers = LayerBoard(config.layer_grouping, config.max_layers)
        self.resumption = Resumption(self._board, self.monitor, self.health)
        self._recollection = Recollection(
            config.blackbox_dir, self._board, self.monitor, clock,
            guarded=partial(self.boundary.at, catalog.LIFECYCLE_ERROR),
            count_error=partial(self.health.count_error, catalog.LIFECYCLE_ERROR),
        )  # fmt: skip
        told = listed(sinks)
        self._sinks = SinkFeed(told, self._board, self.monitor, self.health) if told else None
        self._announcer = Announcer(self.monitor, self._sinks)
        self.ending = Ending(self._board, self.monitor, self.boundary, self._sinks)
        self.ending.write_below(config.summary_dir)
        self._board.after_end = self.ending.tell

    # What there is to see

    @property
    def status(self) -> RunStatus:
        """What is known about the run beside its steps."""
        return self._board.status

    @status.setter
    def status(self, status: RunStatus) -> None:
        self._board.status = status

    @property
    def previous(self) -> Box | None:
        """The black box of the process before this one, None when there was none."""
        return self._recollection.previous

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

    # The run

    def identify(self, *, run: str | None = None, rank: int | None = None, **info: object) -> None:
        """Say what this run is: its default name and rank, and labels of `training_run_info`.

        A name or rank that the user configured wins.

        Raises:
            ValueError: `training_run_info` has no such label.
        """
        described = info_labels(info)
        before, config = self.status, self.config
        name = clean_text(run) if run and config.run is None else before.run
        number = rank if rank is not None and config.rank is None else before.rank
        self._recollection.recall(name, number)
        labels = MappingProxyType({**before.info, **described})
        self.status = self.status._replace(run=name, rank=number, info=labels)

    def set_state(self, state: str, *, failure: str | None = None) -> None:
        """Move the run to a state.

        Args:
            state: one of catalog.RUN_STATES.
            failure: class of the exception that ended the run.
        """
        if state not in catalog.RUN_STATES:
            valid = ", ".join(catalog.RUN_STATES)
            raise ValueError(f"a run's state is one of {valid}, not {state!r}")
        self._recollection.recall(self.status.run, self.status.rank)
        status = self.status._replace(state=state, failure=failure)
        if state == catalog.RUNNING:
            status = status._replace(running_since=self.clock())
            self._board.training_thread = get_ident()
        self.status = status

    def set_nan_filter(self, active: bool) -> None:
        """Say whether the trainer's own log hides NaN and Inf losses."""
        self.status = self.status._replace(nan_filter=active)

    def finish(self, error: BaseException | None = None) -> None:
        """End the run: completed without an error, stopped by Ctrl-C or sys.exit, else crashed."""
        self._recollection.recall(self.status.run, self.status.rank)
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
        self.monitor.observe_pause(activity, self.ended_step, seconds)

    # Observations

    def observe(self, signals: StepSignals) -> None:
        """Take in one optimiser step. Never raises."""
        started = perf_counter()
        self._board.training_thread = get_ident()
        try:
            self._recollection.note_step(signals)
        except Exception as error:  # the step's boundary: the step is to be judged all the same
            self.boundary.report(catalog.LIFECYCLE_ERROR, error)
        try:
            self.monitor.observe(signals)
            if self._sinks is not None:
                self._sinks.step(signals)
            self._announcer.tell_new()
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
            # After the end it belongs to no run, and would start one anew for the sinks.
            if self._sinks is not None and self.status.state not in catalog.FINAL_STATES:
                self._sinks.evaluation(evaluation)
            self._announcer.tell_new()

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

    def observe_layers(self, state: LayerState | None, *, dropped: int = 0) -> None:
        """Take in a pass over the layers of the model, if there is one, and how many were dropped.
        Never raises."""
        if state is not None:
            self._board.layers.state = state
        self.health.dropped_layer_passes += dropped

    def observe_magnitudes(self, found: Magnitudes) -> None:
        """Take in how large the values in the gradients were at a step. Never raises."""
        self._board.magnitudes = self._board.magnitudes.plus(found)

    @property
    def histogram_interval(self) -> int:
        """Steps from one histogram of each layer to the next, as the sinks want it; 0 is none."""
        return self._sinks.histogram_interval if self._sinks is not None else 0

    def observe_histograms(self, found: RawHistograms, step: int) -> None:
        """Take in how the values in gradients and weights were spread at a step.

        Raises:
            RuntimeError: the system grants no thread for a sink.
        """
        if self._sinks is not None:
            self._sinks.histograms(found._replace(step=step, timestamp=self.clock()))

    def observe_compute(self, seconds: Mapping[str, float]) -> None:
        """Take in where the device's time in a step went: seconds by catalog.COMPUTE_PHASES, some
        steps late. What is under another name is left out."""
        self.status = self.status.plus_compute(seconds)

    def observe_forward(
        self, *, begun: int = 0, ended: int = 0, seconds: float | None = None
    ) -> None:
        """Take in that forward passes began or ended on the host, or how long some took on the
        device."""
        passes = (self.status.forward or ForwardPasses()).plus(begun, ended, seconds)
        self.status = self.status._replace(forward=passes)

    def set_peak_flops(self, flops: float | None) -> None:
        """Say what this process's GPU can do at the precision of the run, in FLOP/s. A peak that
        the user configured wins."""
        if self.config.peak_flops is None:
            self.status = self.status._replace(peak_flops=flops)

    def observe_report(self, note: ReportNote) -> None:
        """Take in that a report on a NaN was made. Never raises."""
        self.status = self.status._replace(report=note, reports=self.status.reports + 1)
        if self._sinks is not None:
            self._sinks.report(note)

    def count_dropped(self, steps: int, series: int = 0, *, phases: int = 0) -> None:
        """Count steps that went unseen because no device row was free, values that got no series
        because there were too many, and steps of which the times of the phases are not known."""
        self.health.dropped_observations += steps
        self.health.dropped_phases += phases
        self.health.dropped_series += series
