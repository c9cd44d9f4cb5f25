# SPDX-License-Identifier: Apache-2.0
"""Which GPUs are this process's own, from all that can be known about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import pytest

from training_exporter.gpu.devices import CudaDevice, CudaView, Device
from training_exporter.gpu.selection import choose, visible_devices


def gpu(index: int, name: str = "A100", *, divided: bool = False) -> Device:
    """A GPU whose UUID, like its PCI address, does not go by its index alone."""
    letter = "abcdefgh"[index]
    return Device(
        str(index), f"GPU-{letter * 8}-{index:04}", name, f"00000000:{index + 16:02X}:00.0", divided
    )


def part(of: Device, index: int) -> Device:
    return Device(
        f"{of.gpu}:{index}", f"MIG-{of.uuid[4]}{index}aa-0000", "MIG 1g", of.pci_bus_id,
        parent=of.uuid, instance=(index + 7, 0),
    )  # fmt: skip


FOUR = tuple(gpu(index) for index in range(4))
MIXED = (gpu(0, "T4"), gpu(1, "A100"))
WHOLE, DIVIDED = gpu(0), gpu(1, divided=True)
PARTS = (part(DIVIDED, 0), part(DIVIDED, 1))
MIG = (WHOLE, DIVIDED, *PARTS)
ONE_PART = (gpu(0, divided=True), part(gpu(0), 0))


def named(devices: Sequence[Device | None] | None) -> str | None:
    """The list in short: "2 0", with a question mark for what is not known."""
    if devices is None:
        return None
    return " ".join("?" if device is None else device.gpu for device in devices)


BY_BUS = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
VISIBLE: dict[str, tuple[Sequence[Device], dict[str, str], str | None]] = {
    "not set": (FOUR, {}, "0 1 2 3"),
    "one": (FOUR, {"CUDA_VISIBLE_DEVICES": "2"}, "2"),
    "in another order": (FOUR, {"CUDA_VISIBLE_DEVICES": "3,0"}, "3 0"),
    "with spaces": (FOUR, {"CUDA_VISIBLE_DEVICES": " 3 , 0 "}, "3 0"),
    "empty": (FOUR, {"CUDA_VISIBLE_DEVICES": ""}, ""),
    "none by -1": (FOUR, {"CUDA_VISIBLE_DEVICES": "-1"}, ""),
    "ended by -1": (FOUR, {"CUDA_VISIBLE_DEVICES": "1,-1,2"}, "1"),
    "ended by an empty entry": (FOUR, {"CUDA_VISIBLE_DEVICES": "1,,2"}, "1"),
    "ended by one that is not there": (FOUR, {"CUDA_VISIBLE_DEVICES": "1,4,2"}, "1"),
    "ended by a word": (FOUR, {"CUDA_VISIBLE_DEVICES": "1,two,3"}, "1"),
    "NoDevFiles": (FOUR, {"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, ""),
    "a number with a tail": (FOUR, {"CUDA_VISIBLE_DEVICES": "1abc,2"}, "1 2"),
    "twice the same": (FOUR, {"CUDA_VISIBLE_DEVICES": "1,2,1"}, ""),
    "a UUID": (FOUR, {"CUDA_VISIBLE_DEVICES": "GPU-cccccccc-0002"}, "2"),
    "UUIDs in another order": (
        FOUR, {"CUDA_VISIBLE_DEVICES": "GPU-dddddddd-0003,GPU-aaaaaaaa-0000"}, "3 0",
    ),
    "the beginning of a UUID": (FOUR, {"CUDA_VISIBLE_DEVICES": "GPU-ccc"}, "2"),
    "in capitals": (FOUR, {"CUDA_VISIBLE_DEVICES": "GPU-CCC"}, "2"),
    "a prefix alone": (FOUR, {"CUDA_VISIBLE_DEVICES": "GPU-"}, ""),
    "ambiguous": (
        (Device("0", "GPU-ab1"), Device("1", "GPU-ab2")), {"CUDA_VISIBLE_DEVICES": "GPU-ab"}, "",
    ),
    "an unknown UUID": (FOUR, {"CUDA_VISIBLE_DEVICES": "GPU-eee,GPU-aaa"}, ""),
    "a UUID, then a number": (FOUR, {"CUDA_VISIBLE_DEVICES": "GPU-ccc,1"}, "2"),
    "a number, then a UUID": (FOUR, {"CUDA_VISIBLE_DEVICES": "1,GPU-ccc"}, "1"),
    "the fastest first": (MIXED, {"CUDA_VISIBLE_DEVICES": "0"}, None),
    "the fastest first, not set": (MIXED, {}, None),
    "the fastest first, but none": (MIXED, {"CUDA_VISIBLE_DEVICES": ""}, ""),
    "by the bus": (MIXED, {"CUDA_VISIBLE_DEVICES": "0", **BY_BUS}, "0"),
    "by UUID, whatever the order": (MIXED, {"CUDA_VISIBLE_DEVICES": "GPU-bbb"}, "1"),
    "one that does not answer": (
        (Device("0"), gpu(1)), {"CUDA_VISIBLE_DEVICES": "1", **BY_BUS}, "1",
    ),
    "one that does not answer may be another model": (
        (Device("0"), gpu(1)), {"CUDA_VISIBLE_DEVICES": "1"}, None,
    ),
    "a MIG device": (MIG, {"CUDA_VISIBLE_DEVICES": "MIG-b1aa-0000"}, "1:1"),
    "a MIG device in the old way": (
        MIG, {"CUDA_VISIBLE_DEVICES": "MIG-GPU-bbbbbbbb-0001/8/0"}, "1:1",
    ),
    "no such MIG device": (MIG, {"CUDA_VISIBLE_DEVICES": "MIG-GPU-bbbbbbbb-0001/3/0"}, ""),
    "by number, while a GPU is divided": (MIG, {"CUDA_VISIBLE_DEVICES": "0,1"}, None),
    "a divided GPU, not clear which part": (MIG, {"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"}, "0 ?"),
    "a GPU of one part": (ONE_PART, {"CUDA_VISIBLE_DEVICES": "0"}, "0:0"),
}  # fmt: skip


@pytest.mark.parametrize(("devices", "environ", "expected"), VISIBLE.values(), ids=VISIBLE)
def test_visible_devices(
    devices: Sequence[Device], environ: dict[str, str], expected: str | None
) -> None:
    """CUDA's numbers from the environment, as CUDA itself reads it."""
    assert named(visible_devices(devices, environ)) == expected


def uses(*devices: CudaDevice) -> CudaView:
    return CudaView(initialised=True, used=devices)


def by_uuid(number: int, device: Device) -> CudaDevice:
    return CudaDevice(number, device.uuid[4:])


def by_pci(number: int, device: Device) -> CudaDevice:
    return CudaDevice(number, pci=device.pci)


NOT_YET = CudaView(initialised=False)
SLURM = {"CUDA_VISIBLE_DEVICES": "0,1,2,3", "LOCAL_WORLD_SIZE": "4"}
OTHER_ORDER = {"CUDA_VISIBLE_DEVICES": "3,1"}

# The setting, the machine, what torch says, the environment, where NVML sees us; what is watched.
Case = tuple[
    str, Sequence[Device], CudaView | None, dict[str, str], set[str], dict[str, int | None]
]
CHOICES: dict[str, Case] = {
    "by UUID": ("mine", FOUR, uses(by_uuid(0, FOUR[2])), {}, set(), {"2": 0}),
    "by PCI address": ("mine", FOUR, uses(by_pci(0, FOUR[2])), {}, set(), {"2": 0}),
    "torch knows better than its number": (
        "mine", MIXED, uses(by_uuid(0, MIXED[1])), {}, set(), {"1": 0},
    ),
    "rank 3 of a node sees all and uses one": (
        "mine", FOUR, uses(by_uuid(3, FOUR[3])), SLURM, set(), {"3": 3},
    ),
    "several in one process": (
        "mine", FOUR, uses(by_uuid(0, FOUR[3]), by_uuid(1, FOUR[1])), OTHER_ORDER, set(),
        {"1": 1, "3": 0},
    ),
    "an old torch, a number in another order": (
        "mine", FOUR, uses(CudaDevice(0)), OTHER_ORDER, set(), {"3": 0},
    ),
    "an old torch, no order known": ("mine", MIXED, uses(CudaDevice(0)), {}, set(), {}),
    "an old torch, a number that is not there": (
        "mine", FOUR, uses(CudaDevice(2)), OTHER_ORDER, set(), {},
    ),
    "a UUID that NVML does not list": (
        "mine", FOUR, uses(CudaDevice(0, "eeee")), {}, set(), {},
    ),
    "torch before it uses CUDA": ("mine", FOUR, NOT_YET, {"CUDA_VISIBLE_DEVICES": "1"}, set(), {}),
    "torch does not use CUDA, something else does": (
        "mine", FOUR, NOT_YET, {"CUDA_VISIBLE_DEVICES": "1"}, {"1"}, {"1": 0},
    ),
    "CUDA in use, not known on which device": (
        "mine", FOUR, CudaView(initialised=True), {}, {"2"}, {"2": 2},
    ),
    "torch is surer than the driver's list of processes": (
        "mine", FOUR, uses(by_uuid(1, FOUR[1])), {}, {"0", "1"}, {"1": 1},
    ),
    "no torch, a choice in the environment": (
        "mine", FOUR, None, OTHER_ORDER, set(), {"1": 1, "3": 0},
    ),
    "no torch, no choice": ("mine", FOUR, None, {}, set(), {}),
    "no torch, the driver sees us": ("mine", FOUR, None, {}, {"2"}, {"2": 2}),
    "no torch, the driver sees us in an unknown order": (
        "mine", MIXED, None, {}, {"1"}, {"1": None},
    ),
    "no torch, the driver knows better than the environment": (
        "mine", FOUR, None, OTHER_ORDER, {"3"}, {"3": 0},
    ),
    "no torch, several processes that share all": ("mine", FOUR, None, SLURM, set(), {}),
    "no torch, several processes, one each": (
        "mine", FOUR, None, {**SLURM, "CUDA_VISIBLE_DEVICES": "2"}, set(), {"2": 0},
    ),
    "no devices": ("mine", FOUR, None, {"CUDA_VISIBLE_DEVICES": ""}, set(), {}),
    "a MIG device by its own UUID": (
        "mine", MIG, uses(by_uuid(0, PARTS[1])), {}, set(), {"1:1": 0},
    ),
    "a MIG device by that of its GPU and the environment": (
        "mine", MIG, uses(by_uuid(0, DIVIDED)), {"CUDA_VISIBLE_DEVICES": "MIG-b0aa-0000"}, set(),
        {"1:0": 0},
    ),
    "a MIG device by PCI address and the environment": (
        "mine", MIG, uses(by_pci(0, DIVIDED)), {"CUDA_VISIBLE_DEVICES": "MIG-b1aa-0000"}, set(),
        {"1:1": 0},
    ),
    "some part of a divided GPU": ("mine", MIG, uses(by_uuid(0, DIVIDED)), {}, set(), {}),
    "the only part of a GPU": (
        "mine", ONE_PART, uses(by_uuid(0, ONE_PART[0])), {}, set(), {"0:0": 0},
    ),
    "all": ("all", FOUR, None, OTHER_ORDER, set(), {"0": None, "1": 1, "2": None, "3": 0}),
    "all, by a process without torch that nobody gave any": (
        "all", FOUR, None, {}, set(), dict.fromkeys("0123"),
    ),
    "all, by one that does not use CUDA": (
        "all", FOUR, NOT_YET, OTHER_ORDER, set(), dict.fromkeys("0123"),
    ),
    "all, by one that uses CUDA": (
        "all", FOUR, CudaView(initialised=True), {}, set(), {"0": 0, "1": 1, "2": 2, "3": 3},
    ),
    "all, where only torch knows the number of one": (
        "all", MIXED, uses(by_uuid(0, MIXED[1])), {}, set(), {"0": None, "1": 0},
    ),
    "all, where torch contradicts the environment": (
        "all", FOUR, uses(by_uuid(0, FOUR[1])), OTHER_ORDER, set(),
        {"0": None, "1": 0, "2": None, "3": None},
    ),
    "all, with parts": (
        "all", MIG, NOT_YET, {}, set(), dict.fromkeys(("0", "1", "1:0", "1:1")),
    ),
    "a list": ("2, GPU-aaa", FOUR, None, {"CUDA_VISIBLE_DEVICES": "2"}, set(), {"0": None, "2": 0}),
    "a list with what is not there": ("7,GPU-fff,1", FOUR, None, OTHER_ORDER, set(), {"1": 1}),
    "a part by its number": ("1:1", MIG, None, {"CUDA_VISIBLE_DEVICES": ""}, set(), {"1:1": None}),
}  # fmt: skip


@pytest.mark.parametrize(
    ("gpus", "devices", "cuda", "environ", "held", "expected"), CHOICES.values(), ids=CHOICES
)
def test_choice(
    gpus: str,
    devices: Sequence[Device],
    cuda: CudaView | None,
    environ: dict[str, str],
    held: set[str],
    expected: dict[str, int | None],
) -> None:
    """The GPUs by NVML's numbers, each with CUDA's; never all of them by accident."""
    chosen = choose(gpus, devices, cuda=cuda, environ=environ, held=lambda: held)

    assert {each.device.gpu: each.cuda_device for each in chosen} == expected
    places = [each.device.place for each in chosen]
    assert places == sorted(places)


def test_the_driver_is_not_asked_for_processes_without_need() -> None:
    """Torch knows already."""

    def unasked() -> NoReturn:
        raise AssertionError

    cuda = uses(by_uuid(0, FOUR[2]))
    assert choose("mine", FOUR, cuda=cuda, environ={}, held=unasked)
    assert choose("all", FOUR, cuda=None, environ={}, held=unasked)


def test_pci_addresses() -> None:
    """As numbers, because torch tells them so."""
    assert Device("0", pci_bus_id="00000001:3B:1F.0").pci == (1, 0x3B, 0x1F)
    assert Device("0").pci is None
