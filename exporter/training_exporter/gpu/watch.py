# SPDX-License-Identifier: Apache-2.0
"""Reads the GPUs of this process again and again, whatever happens to them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from queue import Empty, SimpleQueue
from time import monotonic, perf_counter, thread_time, time
from typing import NamedTuple, Protocol

from training_exporter.catalog import DRIVER_STALLED, OTHER
from training_exporter.gpu.calls import STALL_SECONDS, CallWatch
from training_exporter.gpu.devices import Device
from training_exporter.gpu.errors import DriverUnavailableError, GpuUnavailableError
from training_exporter.gpu.nvml import NvmlDriver
from training_exporter.gpu.own import Machine, OwnGpus
from training_exporter.gpu.readings import GpuReading, GpuReadings
from training_exporter.gpu.selection import MINE, Chosen
from training_exporter.gpu.troubles import Troubles

logger = logging.getLogger("training_exporter")

RETRY_SECONDS = 60.0
"""Between two attempts to reach a driver, or a GPU, that has gone."""
_DRIVER = "the NVIDIA driver"
_ABSENT = "GPU metrics are absent"


class Plan(NamedTuple):
    """What to watch and how often, as in ExporterConfig."""

    gpus: str = MINE
    interval: float = 5.0
    pcie: bool = False


class _Known(NamedTuple):
    """What the last complete sample found.

    Attributes:
        stalls: how often the driver had stalled before that sample. When it stalls in it or after
            it, the number is higher until another one is complete.
        began: when it began, on the monotonic clock.
    """

    readings: GpuReadings
    stalls: int
    began: float


class Driver(Machine, Protocol):
    """What is asked of NvmlDriver."""

    def read(self, device: Device, cuda_device: int | None) -> GpuReading: ...
    def close(self) -> None: ...


class GpuWatch:
    """`run` is the body of a thread; `readings` and `stop` are for others and never wait for it.

    Args:
        plan: what to watch.
        own: chooses the GPUs.
        on_error: called for each unexpected error.
        on_cost: called with the processor seconds that a sample took.
        clock, wall_clock: monotonic and Unix time in seconds.
        open_driver: as NvmlDriver.
    """

    def __init__(
        self,
        plan: Plan,
        own: OwnGpus,
        *,
        on_error: Callable[[], object] = lambda: None,
        on_cost: Callable[[float], object] = lambda seconds: None,
        clock: Callable[[], float] = monotonic,
        wall_clock: Callable[[], float] = time,
        open_driver: Callable[..., Driver] = NvmlDriver,
    ) -> None:
        self._plan = plan
        self._own = own
        self._on_error = on_error
        self._on_cost = on_cost
        self._clock = clock
        self._wall_clock = wall_clock
        self._open_driver = open_driver
        self._stopped = False
        # Not an Event: `stop` may be called by the garbage collector, in whatever thread it runs,
        # and an Event's lock may be held there. A SimpleQueue is made for that.
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._calls = CallWatch(clock)
        self._troubles = Troubles()
        self._known = _Known(GpuReadings(), 0, clock())
        self._driver: Driver | None = None
        self._found = False
        self._retry_at = clock()
        self._stall_told = False
        self._errors_told: set[type[Exception]] = set()
        self._lost: dict[str, GpuReading] = {}
        self._xids: dict[str, dict[str, float]] = {}

    # For others

    def readings(self) -> GpuReadings:
        """What is known at this moment. From when the driver stalls until a whole sample was taken
        in good time, no value is shown, and never one that is older than samples can be."""
        known, stalls = self._known, self._calls.stalls
        failures = {**self._troubles.counts, DRIVER_STALLED: float(stalls)}
        if not (self._found or any(failures.values())):
            return GpuReadings()  # as on any machine without such GPUs
        if stalls > known.stalls:
            self._tell_stall()
            return replace(known.readings, gpus=(), stalled=True, failures=failures)
        stalled = None if self._driver is None else False
        gpus = known.readings.gpus if self._clock() - known.began <= self._most_age else ()
        return replace(known.readings, gpus=gpus, stalled=stalled, failures=failures)

    @property
    def _most_age(self) -> float:
        """How many seconds before now a sample may have begun whose values are shown: it and the
        next one take less than a stall, and between them is the interval."""
        return self._plan.interval + 2 * STALL_SECONDS

    @property
    def hanging(self) -> bool:
        """Whether calls into the driver do not return in good time."""
        return self._calls.late

    def stop(self) -> None:
        """Let the thread end as soon as the driver lets it. Takes no lock."""
        self._stopped = True
        self._wake.put(None)

    def _tell_stall(self) -> None:
        if not self._stall_told:
            self._stall_told = True
            logger.warning(
                "%s does not answer within %g s, and %s until it does; the training is not "
                "affected", _DRIVER, STALL_SECONDS, _ABSENT,
            )  # fmt: skip

    # In the thread

    def run(self) -> None:
        """Sample until stopped."""
        try:
            while not self._stopped:
                self.sample()
                with suppress(Empty):
                    self._wake.get(timeout=self._plan.interval)
        finally:
            self._drop_driver()

    def sample(self) -> None:
        """Read everything once. Never raises."""
        began = thread_time()
        self._calls.new_round()
        try:
            self._sample(self._clock())
        except Exception as error:  # the sampler's boundary: in its thread nobody is above it
            self._survive(error)
        self._on_cost(thread_time() - began)

    def _survive(self, error: Exception) -> None:
        self._known = self._known._replace(readings=self._without_gpus())
        self._on_error()
        if type(error) not in self._errors_told:
            self._errors_told.add(type(error))
            logger.error(
                "error in the exporter (gpu); the training is not affected, and more errors of "
                "this kind are only counted, in training_exporter_errors_total", exc_info=error,
            )  # fmt: skip

    def _sample(self, now: float) -> None:
        try:
            if self._reach_driver(now):
                self._read_all(now)
        except DriverUnavailableError as error:
            self._lose_driver(error)

    def _reach_driver(self, now: float) -> bool:
        """Whether there is a session. One in which a GPU was lost is begun anew after a while."""
        if self._driver is not None and self._lost and now >= self._retry_at:
            self._drop_driver()
        if self._driver is None and (now >= self._retry_at or self._is_missed()):
            self._retry_at = now + RETRY_SECONDS
            self._driver = self._open_driver(
                self._calls,
                pcie=self._plan.pcie,
                xids=self._xids,
                on_trouble=self._note_sensor,
                clock=self._clock,
            )
            self._found = True
        return self._driver is not None

    def _is_missed(self) -> bool:
        """Whether nothing was said of a missing driver so far, and now torch uses GPUs."""
        quiet = not self._found and not any(self._troubles.counts.values())
        return quiet and self._own.cuda_in_use

    def _read_all(self, now: float) -> None:
        assert self._driver is not None
        driver, began, started = self._driver, self._clock(), perf_counter()
        stamp = self._wall_clock()  # the time before the first value: none is older than it says
        gpus = tuple(self._read(driver, each, now) for each in self._own.choose(driver, now))
        if gpus:
            took = perf_counter() - started
            found = GpuReadings(gpus=gpus, timestamp=stamp, duration_seconds=took)
        else:
            found = self._without_gpus()
        self._known = _Known(found, self._calls.stalls_before, began)
        self._troubles.settle(_DRIVER)
        if self._stall_told and not self.hanging:
            self._stall_told = False
            logger.info("%s answers again", _DRIVER)

    def _read(self, driver: Driver, chosen: Chosen, now: float) -> GpuReading:
        device, subject = chosen.device, f"GPU {chosen.device.gpu}"
        if device.gpu in self._lost:
            return self._lost[device.gpu]
        try:
            reading = driver.read(device, chosen.cuda_device)
        except DriverUnavailableError:
            raise
        except GpuUnavailableError as error:
            message = f"{subject} cannot be read any more, and its metrics are absent: {error}"
            self._troubles.meet(error.reason, subject, message)
            self._retry_at = now + RETRY_SECONDS
            self._lost[device.gpu] = self._without_values(chosen)
            return self._lost[device.gpu]
        self._troubles.settle(subject)
        return reading

    def _without_values(self, chosen: Chosen) -> GpuReading:
        """What remains of a GPU that was lost: the errors by which it went."""
        gpu, uuid, name = chosen.device[:3]
        xids = dict(self._xids.get(uuid, {}))
        return GpuReading(
            gpu=gpu, uuid=uuid, name=name, cuda_device=chosen.cuda_device, lost=True, xids=xids
        )

    def _note_sensor(self, gpu: str, sensor: str, message: str) -> None:
        subject = f"the sensor {sensor} of GPU {gpu}"
        self._troubles.meet(OTHER, subject, f"{subject} cannot be read: {message}")

    def _lose_driver(self, error: DriverUnavailableError) -> None:
        """That a machine has no driver is worth a word only when one was there or is needed."""
        had_session = self._driver is not None
        self._drop_driver()
        # It answers, though not what was asked: whatever stalled before this is over.
        self._known = _Known(self._without_gpus(), self._calls.stalls, self._clock())
        if self._found or self._own.cuda_in_use:
            message = f"{_DRIVER} cannot be used, and {_ABSENT}: {error}"
            self._troubles.meet(error.reason, _DRIVER, message)
        else:
            logger.debug("no GPU metrics: %s", error)
        if had_session:
            self._retry_at = self._clock()  # it may be there again already

    def _without_gpus(self) -> GpuReadings:
        return replace(self._known.readings, gpus=(), duration_seconds=None)

    def _drop_driver(self) -> None:
        self._lost.clear()
        if self._driver is not None:
            driver, self._driver = self._driver, None
            driver.close()
