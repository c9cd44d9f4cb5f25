# SPDX-License-Identifier: Apache-2.0
"""Peak arithmetic of GPUs, for the share of it that a training uses.

Dense numbers: data sheets mostly print those with 2:4 sparsity, which are twice as high. With
accumulation in float32, as training does it; on GeForce cards that halves the rate of float16.

A name must be known in full. `A10` is not `A100`, a slice of a GPU (MIG), a vGPU or a laptop's chip
is not the GPU it is named after, and a GPU not listed has no peak rather than that of a neighbour.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

PRECISIONS: Final = ("bf16", "fp16", "tf32", "fp32")
"""What matrices are multiplied in. fp32 is without TF32, torch's default outside of autocast."""


class _Peak(NamedTuple):
    """TFLOP/s by precision; None where the GPU has no hardware for it."""

    bf16: float | None
    fp16: float
    tf32: float | None
    fp32: float


def _tensor(half: float, tf32: float, fp32: float) -> _Peak:
    """A GPU whose tensor cores take bfloat16, float16 and TF32."""
    return _Peak(half, half, tf32, fp32)


def _early(half: float, fp32: float) -> _Peak:
    """A GPU whose tensor cores take float16 alone (Volta, Turing)."""
    return _Peak(None, half, None, fp32)


_V100_SXM2 = _early(125, 15.7)  # NVIDIA V100 data sheet
_V100_PCIE = _early(112, 14)
_TURING_102 = _early(130.5, 16.3)  # Turing architecture white paper: Quadro RTX 6000
_A100 = _tensor(312, 156, 19.5)  # NVIDIA A100 data sheet: SXM and PCIe alike
_A800 = _A100  # A800 data sheet: NVLink is slower, arithmetic is not
_H100_SXM = _tensor(989.4, 494.7, 66.9)  # H100 architecture white paper; data sheet 1,979 sparse
_H100_PCIE = _tensor(756.4, 378.2, 51.2)  # the same; data sheet 1,513 sparse
_H100_NVL = _tensor(835.5, 417.5, 60)  # H100 data sheet: 1,671 and 835 sparse, per GPU
_H200 = _tensor(989.5, 494.5, 67)  # H200 data sheet: 1,979 and 989 sparse
_MI300X = _Peak(1307.4, 1307.4, 653.7, 163.4)  # AMD Instinct MI300X data sheet

_PEAKS: Final[dict[str, _Peak]] = {
    "v100 sxm2": _V100_SXM2,
    "v100 pcie": _V100_PCIE,
    "v100s pcie": _early(130, 16.4),  # V100 data sheet
    "t4": _early(65, 8.1),  # NVIDIA T4 data sheet
    "quadro rtx 6000": _TURING_102,
    "quadro rtx 8000": _TURING_102,
    "titan rtx": _TURING_102,
    "a100 sxm4": _A100,
    "a100 sxm": _A100,
    "a100 pcie": _A100,
    "a800 sxm4": _A800,
    "a800 pcie": _A800,
    "a10": _tensor(125, 62.5, 31.2),  # NVIDIA A10 data sheet
    "a10g": _tensor(70, 35, 35),  # A10G data sheet: 140 and 70 sparse; not an A10
    "a30": _tensor(165, 82, 10.3),  # NVIDIA A30 data sheet
    "a40": _tensor(149.7, 74.8, 37.4),  # NVIDIA A40 data sheet
    "rtx a5000": _tensor(111.1, 55.6, 27.8),  # RTX A5000 data sheet: 222.2 sparse
    "rtx a6000": _tensor(154.8, 77.4, 38.7),  # GA102 architecture white paper
    "geforce rtx 3070": _tensor(40.6, 20.3, 20.3),  # GA102 architecture white paper
    "geforce rtx 3090": _tensor(71, 35.6, 35.6),  # GA102 architecture white paper
    "geforce rtx 3090 ti": _tensor(80, 40, 40),  # Ada architecture white paper
    "l4": _tensor(121, 60, 30.3),  # NVIDIA L4 data sheet: 242 and 120 sparse
    "l40": _tensor(181.05, 90.5, 90.5),  # NVIDIA L40 data sheet
    "l40s": _tensor(362.05, 183, 91.6),  # NVIDIA L40S data sheet
    "rtx 5000 ada generation": _tensor(261.1, 130.6, 65.3),  # data sheet: 1,044.4 in FP8, sparse
    "rtx 6000 ada generation": _tensor(364.2, 182.1, 91.1),  # data sheet: 1,457 in FP8, sparse
    "geforce rtx 4080": _tensor(97.5, 48.7, 48.7),  # Ada architecture white paper
    "geforce rtx 4090": _tensor(165.2, 82.6, 82.6),  # Ada architecture white paper
    "h100 hbm3": _H100_SXM,
    "h100 pcie": _H100_PCIE,
    "h100 nvl": _H100_NVL,
    "h800": _H100_SXM,  # H800 data sheet: NVLink and float64 are slower, this is not
    "h800 pcie": _H100_PCIE,
    "h20": _tensor(148, 74, 44),  # NVIDIA H20 data sheet
    "h200": _H200,
    "h200 nvl": _H100_NVL,  # H200 data sheet: 1,671 and 835 sparse
    "gh200": _H200,  # GH200 data sheet: 1,979 sparse
    "gh200 hbm3e": _H200,
    "b200": _tensor(2250, 1100, 75),  # HGX B200 data sheet: 4,500 and 2,200 sparse
    "gb200": _tensor(2500, 1250, 80),  # GB200 NVL72 data sheet, per GPU: 5,000 and 2,500 sparse
    "geforce rtx 5070": _tensor(61.7, 30.9, 30.9),  # RTX Blackwell architecture white paper
    "geforce rtx 5070 ti": _tensor(87.9, 43.9, 43.9),
    "geforce rtx 5080": _tensor(112.6, 56.3, 56.3),
    "geforce rtx 5090": _tensor(209.5, 104.8, 104.8),
    # ROCm lists each of the two dies of an MI250X as a device: half of the 383 of the data sheet.
    "mi250x": _Peak(191.5, 191.5, None, 47.9),
    "mi210": _Peak(181, 181, None, 45.3),  # AMD Instinct MI210 data sheet
    "mi300x": _MI300X,
    "mi325x": _MI300X,  # AMD Instinct MI325X data sheet
}

_UNTOLD: Final = frozenset({"nvidia", "tesla", "amd", "instinct"})
"""Words that are in the names of one GPU under some drivers and not under others."""

_MEMORY: Final = re.compile(r"\d+gb?")
"""A memory size, which says nothing of arithmetic. `1g.10gb`, a slice, is none."""


def peak_flops(name: str, precision: str) -> float | None:
    """Dense peak of one device, in FLOP/s; None for an unknown GPU or one without that precision.

    Args:
        name: as `torch.cuda.get_device_name()` or NVML has it.
        precision: one of PRECISIONS.

    Raises:
        ValueError: an unknown precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    peak = _PEAKS.get(_model(name))
    tera: float | None = None if peak is None else getattr(peak, precision)
    return None if tera is None else tera * 1e12


def _model(name: str) -> str:
    words = name.casefold().replace("-", " ").split()
    return " ".join(w for w in words if w not in _UNTOLD and not _MEMORY.fullmatch(w))
