# SPDX-License-Identifier: Apache-2.0
"""Which GPUs to watch, looked at anew before each sample, since CUDA comes into use late."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from training_exporter.gpu.devices import CudaView, Device, cuda_view
from training_exporter.gpu.selection import MINE, Chosen, choose

logger = logging.getLogger("training_exporter")

PATIENCE_SECONDS = 60.0
"""How long it may stay unknown which GPU is ours before that is said; and how often the driver is
asked on which GPUs this process computes, once it has named one."""


class Machine(Protocol):
    """What is asked of NvmlDriver."""

    devices: tuple[Device, ...]

    def has_process(self, device: Device, pid: int) -> bool: ...


class OwnGpus:
    """Gathers what can be known, and chooses by it.

    CUDA numbers the devices once in the life of a process. So for "mine" the first list of devices
    holds for good: should a GPU fall off the bus and the driver count anew, none is taken for
    another.

    Args:
        gpus: "mine", "all" or a list, as in ExporterConfig.
        used: returns the CUDA devices in use, as seen from the training thread.
        environ: where to look for CUDA_VISIBLE_DEVICES and the like.
        look_at_cuda: as devices.cuda_view.
    """

    def __init__(
        self,
        gpus: str,
        used: Callable[[], Iterable[int]],
        environ: Mapping[str, str] = os.environ,
        look_at_cuda: Callable[[Iterable[int]], CudaView | None] = cuda_view,
    ) -> None:
        self._gpus = gpus
        self._used = used
        self._environ = environ
        self._look_at_cuda = look_at_cuda
        self._first: dict[str, Device] = {}
        self._held: frozenset[str] = frozenset()
        self._ask_at = 0.0
        self._unknown_since: float | None = None
        self._said = False

    @property
    def cuda_in_use(self) -> bool:
        """Whether this process computes on GPUs of NVIDIA, as far as torch knows."""
        cuda = self._look_at_cuda(())
        return cuda is not None and cuda.initialised

    def choose(self, machine: Machine, now: float) -> tuple[Chosen, ...]:
        """The GPUs to watch now; `now` is monotonic time in seconds."""
        devices = self._remembered(machine) if self._gpus == MINE else machine.devices
        chosen = choose(
            self._gpus,
            devices,
            cuda=self._look_at_cuda(self._used()),
            environ=self._environ,
            held=lambda: self._computing(machine, devices, now),
        )
        if chosen:
            self._unknown_since = None
        else:
            self._notice_unknown(devices, now)
        return chosen

    def _remembered(self, machine: Machine) -> list[Device]:
        for device in machine.devices:
            known = self._first.get(device.gpu)
            if known is None or not known.uuid:
                self._first[device.gpu] = device
        return sorted(self._first.values(), key=lambda device: device.place)

    def _computing(self, machine: Machine, devices: Sequence[Device], now: float) -> frozenset[str]:
        if not self._held or now >= self._ask_at:
            self._ask_at = now + PATIENCE_SECONDS
            pid, whole = os.getpid(), [device for device in devices if not device.divided]
            held = (device.gpu for device in whole if machine.has_process(device, pid))
            self._held = frozenset(held)
        return self._held

    def _notice_unknown(self, devices: Sequence[Device], now: float) -> None:
        if self._unknown_since is None:
            self._unknown_since = now
        if self._said or now - self._unknown_since < PATIENCE_SECONDS:
            return
        self._said = True
        there = ", ".join(device.gpu for device in devices) or "none"
        logger.info(
            'no GPU is watched, as it is not known which one this process uses; gpus="all" watches '
            "all that the driver lists (%s), and their numbers choose some", there,
        )  # fmt: skip
