# SPDX-License-Identifier: Apache-2.0
"""The control file of the stand-in NVML library: what it answers, changed while it is in use."""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path
from typing import Final

from training_exporter.demo.plan import MAX_FAKE_GPUS as MAX_GPUS

VARIABLE: Final = "STAND_IN_NVML_CONTROL"
"""Names the control file to the library, which reads it at the first nvmlInit."""

MAGIC: Final = int.from_bytes(b"STINNVML", "little")
VERSION: Final = 1
MAX_MIG: Final = 7
MAX_XIDS: Final = 64
MAX_FUNCTIONS: Final = 96
UNTIL_RELEASED: Final = 2**64 - 1

_text = ctypes.c_char * 96
_number = ctypes.c_uint64


class _Block(ctypes.Structure):
    """A part of the layout of control.h."""


def _numbers(*names: str) -> list[tuple[str, type]]:
    return [(name, _number) for name in names]


class Process(_Block):
    """A process on a GPU; `memory` in bytes."""

    _fields_ = _numbers("pid", "memory")


class Mig(_Block):
    """A part of a GPU; memory in bytes."""

    _fields_ = [
        ("name", _text),
        ("uuid", _text),
        *_numbers("gpu_instance", "compute_instance", "memory_total", "memory_used"),
    ]


class Gpu(_Block):
    """What is said about a GPU, in the units of NVML (see control.h); writing takes effect."""

    _fields_ = [
        ("name", _text),
        ("uuid", _text),
        ("serial", _text),
        *_numbers("lost", "moving", "pci_domain", "pci_bus", "pci_device", "pci_device_id"),
        *_numbers("compute_major", "compute_minor"),
        *_numbers("utilization_gpu", "utilization_memory"),
        *_numbers("utilization_encoder", "utilization_decoder"),
        *_numbers("memory_total", "memory_reserved", "memory_used", "bar1_total", "bar1_used"),
        *_numbers("power", "power_limit", "enforced_power_limit", "energy"),
        *_numbers("temperature", "memory_temperature"),
        ("thresholds", _number * 4),
        ("clocks", _number * 4),
        ("max_clocks", _number * 4),
        *_numbers("clock_reasons", "performance_state", "fans", "fan_speed"),
        *_numbers("ecc", "ecc_pending"),
        ("ecc_errors", _number * 2 * 2),
        ("retired_pages", _number * 2),
        *_numbers("retired_pending"),
        ("remapped_rows", _number * 4),
        ("pcie", _number * 2),
        *_numbers("nvlinks"),
        ("nvlink_throughput", _number * 4),
        *_numbers("process_count"),
        ("processes", Process * 8),
        *_numbers("mig_mode", "mig_pending", "mig_max", "mig_count"),
        ("mig", Mig * MAX_MIG),
    ]


class _Function(_Block):
    _fields_ = [
        ("name", _text),
        *_numbers("calls", "hang"),
        ("errors", _number * (1 + MAX_GPUS)),
    ]


class _Xid(_Block):
    _fields_ = _numbers("gpu", "code")


class _Layout(_Block):
    _fields_ = [
        *_numbers("magic", "version", "size", "driver_loaded", "driver_loads", "hanging", "time"),
        ("driver_version", _text),
        ("nvml_version", _text),
        *_numbers("cuda_version", "gpu_count"),
        ("gpus", Gpu * MAX_GPUS),
        *_numbers("xid_count"),
        ("xids", _Xid * MAX_XIDS),
        *_numbers("function_count"),
        ("functions", _Function * MAX_FUNCTIONS),
    ]


class Control:
    """A control file that this process and users of the library share.

    Every change is seen by the next call of the library, in any process that has the file.

    Args:
        path: an existing control file.

    Raises:
        ValueError: it is none, or of another version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.stat().st_size != ctypes.sizeof(_Layout):
            raise ValueError(f"{path} is no control file of this version: its size is another")
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), ctypes.sizeof(_Layout))
        self._block = _Layout.from_buffer(self._map)
        found = self._block.magic, self._block.version, self._block.size
        if found != (MAGIC, VERSION, ctypes.sizeof(_Layout)):
            raise ValueError(f"{path} is no control file of version {VERSION}: it says {found}")
        functions = self._block.functions[: self._block.function_count]
        self._functions = {function.name.decode(): function for function in functions}

    @classmethod
    def create(cls, path: Path, library: ctypes.CDLL) -> Control:
        """Write a new file with what the library answers by default: two GPUs that stand still."""
        fresh = ctypes.create_string_buffer(ctypes.sizeof(_Layout))
        size = int(library.stand_in_size())
        if size != len(fresh):
            raise ValueError(f"the library has a layout of {size} bytes, not {len(fresh)}")
        library.stand_in_defaults(fresh)
        path.write_bytes(fresh.raw)
        return cls(path)

    @property
    def functions(self) -> tuple[str, ...]:
        """The names of all functions that the library offers, as of their symbols."""
        return tuple(self._functions)

    @property
    def gpu_count(self) -> int:
        """How many GPUs there are, at most 16."""
        return int(self._block.gpu_count)

    @gpu_count.setter
    def gpu_count(self, count: int) -> None:
        if not 0 <= count <= MAX_GPUS:
            raise ValueError(f"{count} GPUs: the stand-in has 0 to {MAX_GPUS}")
        self._block.gpu_count = count

    def gpu(self, index: int) -> Gpu:
        """What is said about a GPU, to be read and written."""
        gpu: Gpu = self._block.gpus[index]
        return gpu

    def move(self) -> None:
        """Let utilisation, power and so on follow the clock, on every GPU."""
        for gpu in self._block.gpus:
            gpu.moving = 1

    def set_time(self, seconds: float) -> None:
        """Let what moves be as it is at a time, rather than follow the clock."""
        self._block.time = round(seconds * 1000)

    def calls(self, function: str) -> int:
        """How often a function was called since the file was made."""
        return int(self._function(function).calls)

    @property
    def hanging(self) -> int:
        """Calls that hang at this moment."""
        return int(self._block.hanging)

    def fail(self, function: str, code: int, gpu: int | None = None) -> None:
        """Let a function return an NVML error, for one GPU or for all; 0 lets it work again."""
        self._function(function).errors[0 if gpu is None else 1 + gpu] = code

    def hang(self, function: str | None = None, seconds: float | None = None) -> None:
        """Let a function, or all, sleep before they answer: for some seconds or until released."""
        milliseconds = UNTIL_RELEASED if seconds is None else round(seconds * 1000)
        for each in [self._function(function)] if function else self._functions.values():
            each.hang = milliseconds

    def release(self) -> None:
        """Let nothing hang any longer, nor what hangs now."""
        for function in self._functions.values():
            function.hang = 0

    def lose(self, gpu: int) -> None:
        """Let a GPU fall off the bus: everything about it answers NVML_ERROR_GPU_IS_LOST."""
        self.gpu(gpu).lost = 1

    def find(self, gpu: int) -> None:
        """Bring back a GPU that was lost."""
        self.gpu(gpu).lost = 0

    def unload_driver(self) -> None:
        """Everything answers NVML_ERROR_DRIVER_NOT_LOADED from now on."""
        self._block.driver_loaded = 0

    def load_driver(self) -> None:
        """A driver anew: NVML_ERROR_UNINITIALIZED until nvmlInit; no handle of before is valid."""
        self._block.driver_loads += 1
        self._block.driver_loaded = 1

    def xid(self, gpu: int, code: int) -> None:
        """Report an Xid error of a GPU to those that wait for events."""
        count = self._block.xid_count
        event = self._block.xids[count % MAX_XIDS]
        event.gpu, event.code = gpu, code
        self._block.xid_count = count + 1

    def add_mig(self, gpu: int, memory_total: int, memory_used: int = 0) -> str:
        """Divide a GPU (its MIG mode is on from now on) and give it one more part.

        Returns:
            the UUID of the part.
        """
        whole = self.gpu(gpu)
        index = whole.mig_count
        if index >= MAX_MIG:
            raise ValueError(f"GPU {gpu} has {MAX_MIG} MIG devices already, which is all it can")
        part = whole.mig[index]
        part.name = whole.name + b" MIG 1g"
        part.uuid = f"MIG-57a4d140-0000-4000-8000-{gpu:06d}{index:06d}".encode()
        part.gpu_instance = index + 1
        part.memory_total, part.memory_used = memory_total, memory_used
        whole.mig_mode = whole.mig_pending = 1
        whole.mig_count = index + 1
        return str(part.uuid.decode())

    def _function(self, name: str) -> _Function:
        if name not in self._functions:
            raise ValueError(f"no function {name!r}: use one of {', '.join(self._functions)}")
        function: _Function = self._functions[name]
        return function
