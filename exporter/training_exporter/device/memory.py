# SPDX-License-Identifier: Apache-2.0
"""What torch's allocator counts on CUDA devices, read on the host."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from math import inf
from time import monotonic
from types import MappingProxyType
from typing import Any, Final
from weakref import WeakKeyDictionary

from training_exporter.gpu.readings import AllocatorReading

OTHERS_SECONDS: Final = 5.0
"""How often devices are read on which the training does not run, but which hold memory of it."""

_NATIVE: Final = "native"
_RETRIES: Final = "num_alloc_retries"
_OUT_OF_MEMORY: Final = "num_ooms"
_WITH_COUNTERS: Final = (_NATIVE, "cudaMallocAsync")
_NO_COUNTERS: Final[Mapping[str, float]] = MappingProxyType({})


class CounterStart:
    """From where torch's counters of a process are counted for one run in it.

    torch counts from the first use of CUDA on: in a notebook, errors of earlier runs too.
    """

    def __init__(self) -> None:
        self._from_zero = _initialised_cuda() is None
        self._starts: dict[tuple[int, str], float] = {}

    def note(self) -> None:
        """Start from now. Devices that are not noted start from 0 where CUDA was not in use when
        this object was made, else from when they are first seen.

        Raises:
            What torch raises.
        """
        cuda = _initialised_cuda()
        if cuda is None or cuda.get_allocator_backend() != _NATIVE:
            return
        for device in range(cuda.device_count()):
            counters = cuda.memory_stats_as_nested_dict(device)
            for name in (_RETRIES, _OUT_OF_MEMORY):
                self.since(device, name, counters.get(name))

    def since(self, device: int, name: str, count: float | None) -> float | None:
        """How much of a count came after the start; all of it once somebody has reset torch's."""
        if count is None:
            return None
        start = self._starts.setdefault((device, name), 0 if self._from_zero else count)
        if count < start:
            start = self._starts[device, name] = 0
        return count - start


_start_of: WeakKeyDictionary[object, CounterStart] = WeakKeyDictionary()


def counter_start(run: object) -> CounterStart:
    """The start of a run's counters, which is the first call of this. Then they never fall, however
    many watches the run has and whenever these are made.

    Args:
        run: the exporter, or whatever else lives as long as the run.

    Raises:
        What torch raises, and only in the first call.
    """
    start = _start_of.get(run)
    if start is None:
        start = _start_of[run] = CounterStart()
        start.note()
    return start


class AllocatorWatch:
    """Reads torch's allocator on the CUDA devices that this process uses.

    A reading costs one call of `memory_stats_as_nested_dict`; torch's public functions flatten and
    sort some 130 counters for each number. It waits for no device, initialises no CUDA, imports no
    torch and resets no peak.

    For the training thread only. The counters lie behind the lock that the allocator holds while it
    is in cudaMalloc, and torch waits for that lock without letting go of the GIL: were a scrape or
    a sampler to ask while the training hangs in the driver, the whole process would stand still,
    its page with it. The training thread asks after its own allocations are done.

    Args:
        start: from where retries and failures are counted; from now on when not given.
        others_seconds: how often the other devices of the process are read.
        clock: seconds, of any origin.
    """

    def __init__(
        self,
        start: CounterStart | None = None,
        *,
        others_seconds: float = OTHERS_SECONDS,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._start = start or counter_start(self)
        self._others_seconds = others_seconds
        self._clock = clock
        self._due = -inf
        self._native = True
        self._main: int | None = None
        self._readings: dict[int, AllocatorReading] = {}
        self._totals: dict[int, float] = {}

    def read(self) -> tuple[AllocatorReading, ...]:
        """A reading of each device in use, first that on which the training runs; none without one.

        Raises:
            What torch raises, and then at most once in `others_seconds`.
        """
        cuda = _initialised_cuda()
        if cuda is None:
            return ()
        now = self._clock()
        if now >= self._due:
            self._due = now + self._others_seconds
            self._look_around(cuda)
        elif self._main is not None:
            self._readings[self._main] = self._read(cuda, self._main)  # at its place, the first
        return tuple(self._readings.values())

    def read_at_the_end(self, error: BaseException | None) -> tuple[AllocatorReading, ...]:
        """The last readings of a run: fresh ones, all devices included, where that cannot hang.

        Running out of memory ends a step before it is closed, so that only now its count can be
        seen; the driver has just answered then. After any other error a thread may hang in the
        driver with the allocator's lock, and who waits for it would keep the process from ending:
        the readings of the last step stand.

        Args:
            error: what ended the run.
        """
        if error is None or _ran_out_of_memory(error):
            self._due = -inf
            return self.read()
        return tuple(self._readings.values())

    def _look_around(self, cuda: Any) -> None:
        """Find the devices in use, and read them all."""
        backend, current = cuda.get_allocator_backend(), cuda.current_device()
        self._native = backend == _NATIVE
        if backend not in _WITH_COUNTERS:  # a plugged-in allocator cannot be asked
            return
        # Any other than torch's own asks the driver, and in some releases of torch on a device that
        # had no context until then, which is hundreds of megabytes: so no device but the current.
        devices = range(cuda.device_count()) if self._native else (current,)
        found = {device: self._read(cuda, device) for device in devices}
        # Once in use always shown: counters that vanish with the cache would be misread.
        used = {
            device: reading
            for device, reading in found.items()
            if device in self._readings or _in_use(reading)
        }
        self._main = main = self._choose(current, used)
        order = sorted(used, key=lambda device: (device != main, device))
        self._readings = {device: self._with_total(cuda, used[device]) for device in order}

    def _choose(self, current: int, used: Mapping[int, AllocatorReading]) -> int | None:
        """The device to read on each step: the current one, unless the tensors lie elsewhere."""
        for device in (current, self._main):
            if device in used:
                return device
        return max(used, key=lambda device: used[device].reserved_bytes or 0, default=None)

    def _with_total(self, cuda: Any, reading: AllocatorReading) -> AllocatorReading:
        device = reading.device
        if device not in self._totals:
            self._totals[device] = cuda.get_device_properties(device).total_memory
        return reading._replace(total_bytes=self._totals[device])

    def _read(self, cuda: Any, device: int) -> AllocatorReading:
        counters = cuda.memory_stats_as_nested_dict(device)
        allocated, reserved = _sums(counters, "allocated_bytes"), _sums(counters, "reserved_bytes")
        native = counters if self._native else _NO_COUNTERS  # the others say 0 and know nothing
        return AllocatorReading(
            device,
            allocated.get("current"),
            allocated.get("peak"),
            reserved.get("current"),
            reserved.get("peak"),
            _sums(native, "inactive_split_bytes").get("current"),
            self._totals.get(device),
            self._start.since(device, _RETRIES, native.get(_RETRIES)),
            self._start.since(device, _OUT_OF_MEMORY, native.get(_OUT_OF_MEMORY)),
        )


def _sums(counters: Mapping[str, Any], name: str) -> Mapping[str, float]:
    """A counter over the allocator's pools together."""
    sums: Mapping[str, float] = counters.get(name, {}).get("all", _NO_COUNTERS)
    return sums


def _in_use(reading: AllocatorReading) -> bool:
    """Whether the process ever held memory there, or the run wanted some."""
    return bool(reading.reserved_bytes or reading.reserved_peak_bytes or reading.out_of_memory)


def _initialised_cuda() -> Any:
    """torch.cuda, None where this process has not used it."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


def _ran_out_of_memory(error: BaseException) -> bool:
    """Whether the error is the allocator's own, or was raised because of it."""
    cuda = _initialised_cuda()
    cause: BaseException | None = error
    while cuda is not None and isinstance(cause, Exception):
        if isinstance(cause, cuda.OutOfMemoryError):
            return True
        cause = cause.__cause__
    return False
