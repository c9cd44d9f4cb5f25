# SPDX-License-Identifier: Apache-2.0
"""A session with NVIDIA's management library, by pynvml. The only room that knows pynvml."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from time import monotonic
from typing import Any

from training_exporter.catalog import (
    DRIVER_NOT_LOADED,
    GPU_LOST,
    LIBRARY_MISSING,
    NO_PERMISSION,
    OTHER,
)
from training_exporter.gpu.calls import INIT_STALL_SECONDS, CallWatch
from training_exporter.gpu.devices import Device
from training_exporter.gpu.errors import (
    DriverUnavailableError,
    GpuUnavailableError,
    NvmlError,
    SensorFailedError,
    SensorUnsupportedError,
)
from training_exporter.gpu.listing import list_devices
from training_exporter.gpu.readings import GpuReading
from training_exporter.gpu.sensors import PCIE_SENSORS, SENSORS, Ask, Fields, Sensor, XidSensor

ASK_AGAIN_SECONDS = 600.0
"""How long a sensor that is not supported is left alone. It may come with another driver."""

# Values of nvmlReturn_t, which are part of the binary interface.
_UNINITIALIZED = 1
_REASONS = {
    4: NO_PERMISSION, 9: DRIVER_NOT_LOADED, 12: LIBRARY_MISSING, 15: GPU_LOST, 16: GPU_LOST,
    28: GPU_LOST,
}  # fmt: skip
_DRIVER_GONE = {_UNINITIALIZED, 9, 12, 18}  # 18: library and kernel module do not fit
_GPU_GONE = {15, 16, 28}
_UNSUPPORTED = {2, 3, 4, 6, 13, 22, 25, 26}


class NvmlDriver:
    """NVML, initialised, with the devices it lists.

    Every call notes its beginning and end in `calls`. For one thread.

    Args:
        calls: what others look at to see a call hang.
        pcie: whether to read PCIe throughput, which takes 20 ms a direction.
        xids: counts of Xid errors by UUID, which live longer than a session.
        on_trouble: told about a sensor that begins to fail: its GPU's index, its name, and what
            the driver said.
        clock: a monotonic clock, in seconds.

    Raises:
        DriverUnavailableError: there is no driver, or it does not answer.
    """

    def __init__(
        self,
        calls: CallWatch,
        *,
        pcie: bool = False,
        xids: dict[str, dict[str, float]] | None = None,
        on_trouble: Callable[[str, str, str], None] = lambda gpu, sensor, message: None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._calls = calls
        self._nvml: Any = _library()
        self._open: dict[str, _OpenGpu] = {}
        self.devices: tuple[Device, ...] = ()
        self.version = ""
        xids = {} if xids is None else xids

        def opened(device: Device, handle: Any) -> _OpenGpu:
            counter = XidSensor(xids.setdefault(device.uuid, {}))
            sensors = SENSORS | PCIE_SENSORS if pcie else SENSORS
            return _OpenGpu(device, handle, counter, sensors, on_trouble, clock)

        self._start(opened)

    def _start(self, opened: Callable[[Device, Any], _OpenGpu]) -> None:
        try:
            self._initialise()
            try:
                self.version = self.ask("nvmlSystemGetDriverVersion")
                found = list(list_devices(self.ask))
            except BaseException:
                self.close()
                raise
        except NvmlError as error:
            reason = _REASONS.get(error.code, OTHER)
            raise DriverUnavailableError(str(error), error.code, reason) from error
        self.devices = tuple(device for device, _ in found)
        self._open = {
            device.uuid: opened(device, handle) for device, handle in found if handle is not None
        }

    def _initialise(self) -> None:
        self._calls.new_round(INIT_STALL_SECONDS)
        try:
            self.ask("nvmlInit")
        finally:
            self._calls.new_round()

    def read(self, device: Device, cuda_device: int | None) -> GpuReading:
        """All that the device tells.

        Raises:
            GpuUnavailableError: it tells nothing.
            DriverUnavailableError: the driver does not.
        """
        fields = self._gpu(device).read(self.ask)
        return GpuReading(
            gpu=device.gpu, uuid=device.uuid, name=device.name, driver_version=self.version,
            pci_bus_id=device.pci_bus_id, cuda_device=cuda_device, **fields,
        )  # fmt: skip

    def has_process(self, device: Device, pid: int) -> bool:
        """Whether a process computes on the device; False too where the driver does not tell."""
        try:
            handle = self._gpu(device).handle
            processes = self.ask("nvmlDeviceGetComputeRunningProcesses", handle)
        except DriverUnavailableError:
            raise
        except NvmlError:
            return False
        return any(process.pid == pid for process in processes)

    def close(self) -> None:
        """Give up the session. NVML counts them, so that others in this process keep theirs."""
        for gpu in self._open.values():
            with suppress(NvmlError):
                gpu.xids.close(self.ask)
        with suppress(NvmlError):
            self.ask("nvmlShutdown")

    def ask(self, function: str, *arguments: Any) -> Any:
        """Call a function of pynvml.

        Raises:
            NvmlError: of the class that says what follows from the failure. What pynvml itself
                stumbles over (a name that is no text, an argument that its release does not know)
                is a failure like any other.
        """
        call = getattr(self._nvml, function, None)
        if call is None:
            raise SensorUnsupportedError(f"pynvml has no {function}; nvidia-ml-py is too old")
        self._calls.begin()
        try:
            return call(*arguments)
        except Exception as error:  # of unknown kinds: one failed call must not cost all GPUs
            raise self._classified(function, error) from error
        finally:
            self._calls.end()

    def _classified(self, function: str, error: Exception) -> NvmlError:
        if isinstance(error, self._nvml.NVMLError):
            return _by_code(f"{function}: {error}", int(error.value))
        return SensorFailedError(f"{function}: {type(error).__name__}: {error}")

    def _gpu(self, device: Device) -> _OpenGpu:
        try:
            return self._open[device.uuid]
        except KeyError:
            message = f"GPU {device.gpu} is not among those that the driver lets us use"
            raise GpuUnavailableError(message, reason=GPU_LOST) from None


class _OpenGpu:
    """A device of a session, and which of its sensors work."""

    def __init__(
        self,
        device: Device,
        handle: Any,
        xids: XidSensor,
        sensors: Mapping[str, Sensor],
        on_trouble: Callable[[str, str, str], None],
        clock: Callable[[], float],
    ) -> None:
        self.handle = handle
        self.xids = xids
        self._index = device.gpu
        # The events first: a GPU that was lost has said why, and then says nothing else.
        self._sensors: dict[str, Sensor] = {"xids": xids, **sensors}
        self._on_trouble = on_trouble
        self._clock = clock
        self._ask_again: dict[str, float] = {}
        self._failing: set[str] = set()

    def read(self, ask: Ask) -> dict[str, Any]:
        """Fields of GpuReading, as many as there are sensors that work."""
        fields: dict[str, Any] = {}
        now = self._clock()
        for name, sensor in self._sensors.items():
            if self._ask_again.get(name, now) <= now:
                _merge(fields, self._try(name, sensor, ask, now))
        if not fields.keys() - {"xids"}:
            raise GpuUnavailableError(f"GPU {self._index} answers no question")
        return fields

    def _try(self, name: str, sensor: Sensor, ask: Ask, now: float) -> Fields:
        try:
            found = sensor(ask, self.handle)
        except SensorUnsupportedError:
            self._ask_again[name] = now + ASK_AGAIN_SECONDS
            return {}
        except SensorFailedError as error:
            return self._fail(name, str(error))
        except NvmlError:
            raise  # the GPU is gone, or the driver, and with it the other sensors
        except Exception as error:  # an answer of an unknown shape costs this sensor alone
            return self._fail(name, f"{type(error).__name__}: {error}")
        self._failing.discard(name)
        return found

    def _fail(self, name: str, message: str) -> Fields:
        if name not in self._failing:
            self._failing.add(name)
            self._on_trouble(self._index, name, message)
        return {}


def _merge(fields: dict[str, Any], found: Mapping[str, Any]) -> None:
    """Add what was found; several sensors may each know a part of a mapping."""
    for name, value in found.items():
        if isinstance(value, dict):
            known = {key: part for key, part in value.items() if part is not None}
            if known:
                fields[name] = {**fields.get(name, {}), **known}
        elif value is not None:
            fields[name] = value


def _library() -> Any:
    try:
        import pynvml
    except Exception as error:  # whatever is installed under this name may raise anything
        message = f"the package nvidia-ml-py cannot be imported: {error}"
        raise DriverUnavailableError(message, reason=LIBRARY_MISSING) from error
    if not hasattr(pynvml, "NVMLError"):
        message = f"the module pynvml is not that of nvidia-ml-py: {pynvml!r}"
        raise DriverUnavailableError(message, reason=LIBRARY_MISSING)
    return pynvml


def _by_code(message: str, code: int) -> NvmlError:
    if code in _DRIVER_GONE:
        return DriverUnavailableError(message, code, _REASONS.get(code, OTHER))
    if code in _GPU_GONE:
        return GpuUnavailableError(message, code, GPU_LOST)
    return (SensorUnsupportedError if code in _UNSUPPORTED else SensorFailedError)(message, code)
