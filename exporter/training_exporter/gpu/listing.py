# SPDX-License-Identifier: Apache-2.0
"""The devices of the machine, as NVML lists them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from training_exporter.gpu.devices import Device
from training_exporter.gpu.errors import DriverUnavailableError, NvmlError, SensorUnsupportedError
from training_exporter.gpu.sensors import Ask


def list_devices(ask: Ask) -> Iterator[tuple[Device, Any]]:
    """All GPUs by index, each with its MIG devices behind it, and their handles.

    A GPU that does not answer keeps its place, without UUID and handle, so that those behind it are
    not taken for it.
    """
    for index in range(ask("nvmlDeviceGetCount")):
        try:
            handle = ask("nvmlDeviceGetHandleByIndex", index)
            gpu = _whole_gpu(ask, handle, index)
        except DriverUnavailableError:
            raise
        except NvmlError:
            yield Device(str(index)), None
            continue
        yield gpu, handle
        if gpu.divided:
            yield from _parts(ask, handle, gpu)


def _whole_gpu(ask: Ask, handle: Any, index: int) -> Device:
    pci = ask("nvmlDeviceGetPciInfo", handle)
    return Device(
        str(index),
        uuid=ask("nvmlDeviceGetUUID", handle),
        name=ask("nvmlDeviceGetName", handle),
        pci_bus_id=_text(pci.busId),
        divided=_is_divided(ask, handle),
    )


def _is_divided(ask: Ask, handle: Any) -> bool:
    try:
        current, _ = ask("nvmlDeviceGetMigMode", handle)
    except SensorUnsupportedError:
        return False
    return bool(current)


def _parts(ask: Ask, handle: Any, gpu: Device) -> Iterator[tuple[Device, Any]]:
    for index in range(ask("nvmlDeviceGetMaxMigDeviceCount", handle)):
        try:
            part = ask("nvmlDeviceGetMigDeviceHandleByIndex", handle, index)
        except SensorUnsupportedError:  # no part of this number
            continue
        yield (
            gpu._replace(
                gpu=f"{gpu.gpu}:{index}",
                uuid=ask("nvmlDeviceGetUUID", part),
                name=ask("nvmlDeviceGetName", part),
                divided=False,
                parent=gpu.uuid,
                instance=(
                    ask("nvmlDeviceGetGpuInstanceId", part),
                    ask("nvmlDeviceGetComputeInstanceId", part),
                ),
            ),
            part,
        )


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
