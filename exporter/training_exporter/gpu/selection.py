# SPDX-License-Identifier: Apache-2.0
"""Which of the machine's GPUs are this process's own.

Nothing here asks anybody; all that can be known comes in as arguments. Where what is known does not
suffice, the answer is no GPU, because numbers of somebody else's are worse than none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence, Set
from typing import NamedTuple

from training_exporter.gpu.devices import CudaDevice, CudaView, Device

MINE = "mine"
ALL = "all"

VISIBLE = "CUDA_VISIBLE_DEVICES"
ORDER = "CUDA_DEVICE_ORDER"
_UUID_PREFIXES = ("GPU-", "MIG-")


class Chosen(NamedTuple):
    """A device to watch, and the number by which CUDA knows it here, None where not known."""

    device: Device
    cuda_device: int | None


def choose(
    gpus: str,
    devices: Sequence[Device],
    *,
    cuda: CudaView | None,
    environ: Mapping[str, str],
    held: Callable[[], Set[str]],
) -> tuple[Chosen, ...]:
    """The devices to watch, in the order of NVML.

    Args:
        gpus: "mine", "all", or indices and UUIDs of NVML, separated by commas.
        devices: all devices of the machine, in the order of NVML.
        cuda: what torch says; None where there is no torch with CUDA.
        environ: where CUDA_VISIBLE_DEVICES, CUDA_DEVICE_ORDER and LOCAL_WORLD_SIZE are looked up.
        held: the `gpu` of those devices on which NVML sees this process; asked only when needed.
    """
    visible = visible_devices(devices, environ)
    if gpus == MINE:
        numbers = _mine(devices, visible, cuda, environ, held)
    else:
        certain = _certain(devices, visible, cuda, environ)
        numbers = {gpu: certain.get(gpu) for gpu in _listed(gpus, devices)}
    return tuple(Chosen(each, numbers[each.gpu]) for each in devices if each.gpu in numbers)


def _listed(gpus: str, devices: Sequence[Device]) -> list[str]:
    if gpus == ALL:
        return [device.gpu for device in devices]
    tokens = [token.strip() for token in gpus.split(",")]
    named = {token for token in tokens if not token.startswith(_UUID_PREFIXES)}
    found = [_by_uuid(token, devices) for token in tokens if token not in named]
    return [*named, *(device.gpu for device in found if device is not None)]


def _mine(
    devices: Sequence[Device],
    visible: Sequence[Device | None] | None,
    cuda: CudaView | None,
    environ: Mapping[str, str],
    held: Callable[[], Set[str]],
) -> dict[str, int | None]:
    """CUDA's number by NVML's, from the surest source that says anything."""
    if cuda is not None and cuda.used:
        return {**_matched(cuda, devices, visible)}
    numbers = _numbered(visible)
    holding = held()
    if holding:
        return {gpu: numbers.get(gpu) for gpu in holding}
    # With torch, more will be known when it uses CUDA. Without, the variable is a choice somebody
    # made for this process, but not where several processes were given all devices together.
    shared = environ.get("LOCAL_WORLD_SIZE", "1") != "1" and len(numbers) > 1
    if cuda is not None or VISIBLE not in environ or shared:
        return {}
    return {**numbers}


def _certain(
    devices: Sequence[Device],
    visible: Sequence[Device | None] | None,
    cuda: CudaView | None,
    environ: Mapping[str, str],
) -> dict[str, int]:
    """CUDA's numbers by NVML's, where this process does know devices by them.

    One that does not use CUDA, such as a run on the CPU beside GPUs that it watches, has none.
    """
    if cuda is None:
        return _numbered(visible) if VISIBLE in environ else {}
    if not cuda.initialised:
        return {}
    matched = _matched(cuda, devices, visible)
    taken = set(matched.values())
    return {gpu: n for gpu, n in _numbered(visible).items() if n not in taken} | matched


def _matched(
    cuda: CudaView, devices: Sequence[Device], visible: Sequence[Device | None] | None
) -> dict[str, int]:
    found = {each.number: match(each, devices, visible) for each in cuda.used}
    return {device.gpu: number for number, device in found.items() if device is not None}


def _numbered(visible: Sequence[Device | None] | None) -> dict[str, int]:
    return {device.gpu: index for index, device in enumerate(visible or ()) if device is not None}


def match(
    cuda: CudaDevice, devices: Sequence[Device], visible: Sequence[Device | None] | None
) -> Device | None:
    """The NVML device of a CUDA device: by UUID, else by PCI address, else by its number."""
    for device in devices:
        if cuda.uuid and device.uuid[4:].lower() == cuda.uuid:
            return _usable(device, devices, visible)
    for device in devices:
        if cuda.pci is not None and device.pci == cuda.pci and not device.parent:
            return _usable(device, devices, visible)
    known = cuda.uuid or cuda.pci
    if known or visible is None or cuda.number >= len(visible):
        return None
    return visible[cuda.number]


def _usable(
    device: Device, devices: Sequence[Device], visible: Sequence[Device | None] | None = None
) -> Device | None:
    """The device itself, or that part of it which CUDA uses if it is divided and this is clear."""
    if not device.divided:
        return device
    parts = [part for part in devices if part.parent == device.uuid]
    seen = [part for part in parts if visible and part in visible]
    candidates = seen or parts
    return candidates[0] if len(candidates) == 1 else None


def visible_devices(
    devices: Sequence[Device], environ: Mapping[str, str]
) -> tuple[Device | None, ...] | None:
    """The devices by CUDA's numbers, as the environment has them.

    None as a whole where the order is not known, and as an entry where only that one is not.

    CUDA ends the list at the first entry that names no device, and has no devices at all when one
    is named twice (CUDA C++ Programming Guide, "CUDA Environment Variables"; checked against what
    torch.cuda._parse_visible_devices does).
    """
    value = environ.get(VISIBLE)
    order = _cuda_order(devices, environ.get(ORDER, ""))
    if value is None:
        return None if order is None else tuple(_usable(gpu, devices) for gpu in order)
    tokens = [token.strip() for token in value.split(",")]
    if tokens[0].startswith(_UUID_PREFIXES):
        named = _take_while_named(tokens, lambda token: _by_uuid(token, devices))
    elif order is not None:
        named = _take_while_named(tokens, lambda token: _by_number(token, order))
    else:
        return None if _number(tokens[0]) >= 0 else ()
    if len(set(named)) != len(named):
        return ()
    return tuple(_usable(device, devices) for device in named)


def _take_while_named(tokens: Sequence[str], find: Callable[[str], Device | None]) -> list[Device]:
    named = []
    for token in tokens:
        device = find(token)
        if device is None:
            break
        named.append(device)
    return named


def _by_uuid(token: str, devices: Sequence[Device]) -> Device | None:
    """The device of a UUID or an unambiguous beginning of one, or of MIG-GPU-<uuid>/<gi>/<ci>."""
    old_style = re.fullmatch(r"MIG-(GPU-[^/]+)/(\d+)/(\d+)", token)
    if old_style is not None:
        instance = int(old_style[2]), int(old_style[3])
        of = [each for each in devices if each.parent == old_style[1] and each.instance == instance]
    else:
        of = [each for each in devices if each.uuid.lower().startswith(token.lower())]
        of = [each for each in of if len(token) > len("GPU-")]
    return of[0] if len(of) == 1 else None


def _by_number(token: str, order: Sequence[Device]) -> Device | None:
    number = _number(token)
    return order[number] if 0 <= number < len(order) else None


def _number(token: str) -> int:
    """The number a token begins with, as C's strtoul has it; -1 where there is none."""
    digits = re.match(r"[+-]?\d+", token)
    return int(digits[0]) if digits else -1


def _cuda_order(devices: Sequence[Device], order: str) -> tuple[Device, ...] | None:
    """The whole GPUs in CUDA's order, which by default has the fastest first.

    That is NVML's, by PCI address, only if asked for or if all are of the same model. Of several
    GPUs of which one is divided, CUDA leaves some out.
    """
    gpus = tuple(device for device in devices if not device.parent)
    by_address = order == "PCI_BUS_ID" or len({gpu.name for gpu in gpus}) <= 1
    whole = len(gpus) == 1 or not any(gpu.divided for gpu in gpus)
    return gpus if by_address and whole else None
