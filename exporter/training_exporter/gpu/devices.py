# SPDX-License-Identifier: Apache-2.0
"""What a device is called: by NVML, and by CUDA in this process."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from typing import Any, NamedTuple

PciAddress = tuple[int, int, int]


class Device(NamedTuple):
    """A GPU, or a MIG device, as NVML lists it.

    Attributes:
        gpu: index as nvidia-smi shows it; of a MIG device that of its GPU and its own: "0:1".
        uuid: "GPU-..." or "MIG-..."; empty when the GPU does not answer.
        divided: whether it is a GPU in MIG mode, of which CUDA uses only parts.
        parent: UUID of the GPU that a MIG device is a part of, else empty.
        instance: GPU instance and compute instance of a MIG device.
    """

    gpu: str
    uuid: str = ""
    name: str = ""
    pci_bus_id: str = ""
    divided: bool = False
    parent: str = ""
    instance: tuple[int, int] = (0, 0)

    @property
    def pci(self) -> PciAddress | None:
        """Domain, bus and device of its PCI address, such as 00000000:3B:00.0."""
        parts = re.fullmatch(r"([0-9A-Fa-f]+):([0-9A-Fa-f]+):([0-9A-Fa-f]+)\.\d", self.pci_bus_id)
        if parts is None:
            return None
        domain, bus, device = (int(part, 16) for part in parts.groups())
        return domain, bus, device

    @property
    def place(self) -> list[int]:
        """To sort by: GPUs by number, the parts of each behind it."""
        return [int(number) for number in self.gpu.split(":")]


class CudaDevice(NamedTuple):
    """A device as CUDA numbers it in this process.

    Attributes:
        number: as in "cuda:0".
        uuid: without a prefix, in small letters; empty when torch does not tell.
        pci: its PCI address, None when torch does not tell.
    """

    number: int
    uuid: str = ""
    pci: PciAddress | None = None


class CudaView(NamedTuple):
    """What torch in this process says of CUDA.

    Attributes:
        initialised: whether CUDA is in use; while it is not, nothing can be said about devices.
        used: those of them that hold memory of its allocator, or are current.
    """

    initialised: bool
    used: tuple[CudaDevice, ...] = ()


def cuda_view(used: Iterable[int]) -> CudaView | None:
    """Look at torch, if it is loaded and built for CUDA; never loads it, nor initialises CUDA.

    Device properties are kept by torch on the host since CUDA was initialised, so that asking for
    them waits for nothing. The current device cannot be asked for: it is one per thread.

    Args:
        used: the devices in use, as seen from the training thread.
    """
    torch = sys.modules.get("torch")
    cuda: Any = getattr(torch, "cuda", None)  # torch may be half imported at this moment
    if cuda is None or getattr(getattr(torch, "version", None), "cuda", None) is None:
        return None
    if not getattr(cuda, "is_initialized", bool)():
        return CudaView(initialised=False)
    count = len(cuda.default_generators)  # made at initialisation, one per device
    numbers = sorted({number for number in used if 0 <= number < count})
    if not numbers and count == 1:
        numbers = [0]
    described = tuple(_described(cuda.get_device_properties(each), each) for each in numbers)
    return CudaView(initialised=True, used=described)


def _described(properties: Any, number: int) -> CudaDevice:
    """From what torch tells: a UUID since 2.4, a PCI address in newer versions."""
    uuid = str(getattr(properties, "uuid", "")).lower()
    uuid = uuid.removeprefix("gpu-").removeprefix("mig-")
    names = ("pci_domain_id", "pci_bus_id", "pci_device_id")
    domain, bus, device = (getattr(properties, name, None) for name in names)
    if domain is None or bus is None or device is None:
        return CudaDevice(number, uuid)
    return CudaDevice(number, uuid, (domain, bus, device))
