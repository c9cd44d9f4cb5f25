# SPDX-License-Identifier: Apache-2.0
"""What torch says of CUDA, if it says anything."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType, SimpleNamespace

import pytest

from training_exporter.gpu.devices import CudaDevice, CudaView, cuda_view

NOT_YET = CudaView(initialised=False)


def uses(*devices: CudaDevice) -> CudaView:
    return CudaView(initialised=True, used=devices)


class Cuda(ModuleType):
    """As much of torch.cuda as is looked at; everything else would be an AttributeError."""

    def __init__(self, *, initialised: bool = True, **properties: object) -> None:
        super().__init__("torch.cuda")
        self.default_generators = tuple(range(4 if initialised else 0))
        self._initialised = initialised
        self._properties = properties

    def is_initialized(self) -> bool:
        return self._initialised

    def get_device_properties(self, device: int) -> SimpleNamespace:
        assert self._initialised
        return SimpleNamespace(**self._properties)


def torch_with(cuda: object, version: str | None = "12.8") -> SimpleNamespace:
    return SimpleNamespace(cuda=cuda, version=SimpleNamespace(cuda=version))


TORCHES: dict[str, tuple[object, Sequence[int], CudaView | None]] = {
    "not loaded": (None, (0,), None),
    "half imported": (SimpleNamespace(), (0,), None),
    "half imported, a little later": (torch_with(SimpleNamespace()), (0,), NOT_YET),
    "built for CPUs": (torch_with(Cuda(), None), (0,), None),
    "not initialised": (torch_with(Cuda(initialised=False)), (0,), NOT_YET),
    "nothing known to be used": (torch_with(Cuda(uuid="AB-CD")), (), CudaView(initialised=True)),
    "with UUIDs": (
        torch_with(Cuda(uuid="AB-CD")), (2, 1, 2),
        uses(CudaDevice(1, "ab-cd"), CudaDevice(2, "ab-cd")),
    ),
    "with a prefix": (torch_with(Cuda(uuid="GPU-AB")), (1,), uses(CudaDevice(1, "ab"))),
    "with PCI addresses": (
        torch_with(Cuda(pci_domain_id=0, pci_bus_id=59, pci_device_id=1)), (0,),
        uses(CudaDevice(0, "", (0, 59, 1))),
    ),
    "with neither": (torch_with(Cuda()), (3,), uses(CudaDevice(3))),
    "a number out of range": (torch_with(Cuda()), (4, -1), CudaView(initialised=True)),
}  # fmt: skip


@pytest.mark.parametrize(("torch", "used", "expected"), TORCHES.values(), ids=TORCHES)
def test_what_torch_says(
    monkeypatch: pytest.MonkeyPatch, torch: object, used: Sequence[int], expected: CudaView | None
) -> None:
    """Only asked when it is there and uses CUDA already."""
    monkeypatch.setitem(sys.modules, "torch", torch)

    assert cuda_view(used) == expected


def test_the_only_device_of_a_process_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has to have seen it in use."""
    cuda = Cuda(uuid="AB")
    cuda.default_generators = (0,)
    monkeypatch.setitem(sys.modules, "torch", torch_with(cuda))

    assert cuda_view(()) == uses(CudaDevice(0, "ab"))


def test_the_real_torch_of_this_machine() -> None:
    """What is looked at exists, under these names."""
    import torch

    assert isinstance(torch.cuda.is_initialized(), bool)
    assert isinstance(torch.cuda.default_generators, tuple)
    assert hasattr(torch.version, "cuda")
