# SPDX-License-Identifier: Apache-2.0
"""FLOPs of a step and the peaks they are held against."""

from __future__ import annotations

import pytest

from training_exporter.flops import ModelSize, training_flops, utilisation
from training_exporter.gpu.peaks import _PEAKS, PRECISIONS, peak_flops


def test_a_model_trained_as_a_whole_needs_six_per_weight_and_token() -> None:
    """Two in the forward pass and four in the backward pass, without attention."""
    assert training_flops(ModelSize(1e9, 1e9, 1e9), 2048, 1024) == 6e9 * 2048


def test_palm_s_number_for_a_token() -> None:
    """`6 N + 12 L H Q T` of the paper's largest model: 540.35e9, 118 layers, 48 x 256, 2048."""
    size = ModelSize(540.35e9, 540.35e9, 540.35e9, attention=118 * 48 * 256)

    assert training_flops(size, 1, 2048) == 6 * 540.35e9 + 12 * 118 * 48 * 256 * 2048


@pytest.mark.parametrize(
    ("backpropagated", "trainable", "per_token"),
    [
        (100.0, 100.0, 600 + 12 * 5),
        (100.0, 0.0, 400 + 12 * 5),  # frozen weights below something that is trained
        (0.0, 0.0, 200 + 4 * 5),  # frozen weights that nothing trainable comes before
        (25.0, 25.0, 300 + (4 + 2) * 5),  # the last quarter is trained
    ],
)
def test_frozen_weights_cost_less(
    backpropagated: float, trainable: float, per_token: float
) -> None:
    """Of weights and of attention only the parts of the backward pass that take place count."""
    size = ModelSize(100, backpropagated, trainable, attention=1)

    assert training_flops(size, 10, 5) == 10 * per_token


def test_a_window_bounds_what_a_position_sees() -> None:
    """A row shorter than the window is seen as a whole."""
    size = ModelSize(100, 100, 100, attention=1, windowed=10, window=8)

    assert training_flops(size, 1, 20) == 600 + 12 * (20 + 10 * 8)
    assert training_flops(size, 1, 4) == 600 + 12 * (4 + 10 * 4)


def test_rows_of_unknown_length_have_no_attention_counted() -> None:
    """Their joined length would overstate it by as much as there are rows."""
    assert training_flops(ModelSize(100, 100, 100, attention=1), 50, None) == 600 * 50


def test_utilisation_needs_both() -> None:
    """It is absent for a GPU that is not in the table, and for a model that is not understood."""
    assert utilisation(200e12, 400e12) == 0.5
    assert utilisation(200e12, None) is None
    assert utilisation(None, 400e12) is None


KNOWN = {
    "NVIDIA H100 80GB HBM3": 989.4,
    "NVIDIA H100 PCIe": 756.4,
    "NVIDIA H100 NVL": 835.5,
    "NVIDIA H200": 989.5,
    "NVIDIA H200 NVL": 835.5,
    "NVIDIA H800": 989.4,
    "NVIDIA H20": 148,
    "NVIDIA GH200 480GB": 989.5,
    "NVIDIA GH200 144G HBM3e": 989.5,
    "NVIDIA B200": 2250,
    "NVIDIA GB200": 2500,
    "NVIDIA A100-SXM4-80GB": 312,
    "NVIDIA A100-SXM4-40GB": 312,
    "A100-SXM4-40GB": 312,
    "NVIDIA A100-PCIE-40GB": 312,
    "NVIDIA A100 80GB PCIe": 312,
    "NVIDIA A800-SXM4-80GB": 312,
    "NVIDIA A10": 125,
    "NVIDIA A10G": 70,
    "NVIDIA A30": 165,
    "NVIDIA A40": 149.7,
    "NVIDIA L4": 121,
    "NVIDIA L40": 181.05,
    "NVIDIA L40S": 362.05,
    "NVIDIA RTX A5000": 111.1,
    "NVIDIA RTX A6000": 154.8,
    "NVIDIA RTX 6000 Ada Generation": 364.2,
    "NVIDIA GeForce RTX 3090": 71,
    "GeForce RTX 3090": 71,
    "NVIDIA GeForce RTX 3090 Ti": 80,
    "NVIDIA GeForce RTX 4090": 165.2,
    "NVIDIA GeForce RTX 5090": 209.5,
    "Tesla V100-SXM2-16GB": 125,
    "Tesla V100-SXM2-32GB": 125,
    "Tesla V100-PCIE-16GB": 112,
    "Tesla V100S-PCIE-32GB": 130,
    "Tesla T4": 65,
    "Quadro RTX 6000": 130.5,
    "AMD Instinct MI250X": 191.5,
    "AMD Instinct MI300X": 1307.4,
}


@pytest.mark.parametrize(("name", "tera"), KNOWN.items())
def test_a_gpu_is_known_by_the_name_that_its_driver_tells(name: str, tera: float) -> None:
    """Every variant of a GPU has its own peak, and memory sizes make no difference."""
    assert peak_flops(name, "fp16") == tera * 1e12


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA A100-SXM4-80GB MIG 1g.10gb",
        "NVIDIA H100 80GB HBM3 MIG 3g.40gb",
        "GRID A100-10C",
        "NVIDIA A40-48Q",
        "NVIDIA H100 80GB HBM2e",
        "NVIDIA H100",
        "NVIDIA A1000",
        "NVIDIA RTX A1000",
        "NVIDIA A100X",
        "NVIDIA A10M",
        "NVIDIA A2",
        "NVIDIA L400",
        "NVIDIA L4 Tensor",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4080 SUPER",
        "NVIDIA RTX 6000",
        "NVIDIA RTX 4090",
        "NVIDIA GeForce RTX 3080",
        "NVIDIA GeForce GTX 1080 Ti",
        "Tesla V100-SXM3-32GB",
        "Tesla V100-SXM2-32GB-LS",
        "Tesla P100-PCIE-16GB",
        "NVIDIA H20-3e",
        "NVIDIA Graphics Device",
        "AMD Instinct MI300A",
        "AMD Radeon RX 7900 XTX",
        "Apple M3 Max",
        "80GB",
        "NVIDIA",
        "",
    ],
)
def test_a_gpu_that_is_not_listed_has_no_peak(name: str) -> None:
    """Least of all that of a GPU whose name is nearly the same."""
    assert [peak_flops(name, precision) for precision in PRECISIONS] == [None] * 4


def test_a_precision_without_hardware_has_no_peak() -> None:
    """Volta and Turing know no bfloat16 and no TF32."""
    assert peak_flops("Tesla T4", "bf16") is None
    assert peak_flops("Tesla V100-SXM2-16GB", "tf32") is None
    assert peak_flops("Tesla T4", "fp32") == 8.1e12


def test_an_unknown_precision_is_refused() -> None:
    """With those that there are."""
    with pytest.raises(ValueError, match=r"one of bf16, fp16, tf32, fp32, got 'int8'"):
        peak_flops("Tesla T4", "int8")


DESIGN = {
    # SMs, boost clock in MHz, operations of the tensor cores per SM and clock in float16 with
    # accumulation in float32: from the architecture white papers, not from the data sheets.
    "v100 sxm2": (80, 1530, 1024),
    "v100 pcie": (80, 1380, 1024),
    "t4": (40, 1590, 1024),
    "quadro rtx 6000": (72, 1770, 1024),
    "a100 sxm4": (108, 1410, 2048),
    "a10": (72, 1695, 1024),
    "a10g": (80, 1710, 512),
    "a30": (56, 1440, 2048),
    "a40": (84, 1740, 1024),
    "rtx a5000": (64, 1695, 1024),
    "rtx a6000": (84, 1800, 1024),
    "geforce rtx 3070": (46, 1725, 512),
    "geforce rtx 3090": (82, 1695, 512),
    "geforce rtx 3090 ti": (84, 1860, 512),
    "l4": (58, 2040, 1024),
    "l40": (142, 2490, 512),
    "l40s": (142, 2520, 1024),
    "rtx 5000 ada generation": (100, 2550, 1024),
    "rtx 6000 ada generation": (142, 2505, 1024),
    "geforce rtx 4080": (76, 2505, 512),
    "geforce rtx 4090": (128, 2520, 512),
    "h100 hbm3": (132, 1830, 4096),
    "h100 pcie": (114, 1620, 4096),
    "geforce rtx 5070": (48, 2512, 512),
    "geforce rtx 5070 ti": (70, 2452, 512),
    "geforce rtx 5080": (84, 2617, 512),
    "geforce rtx 5090": (170, 2407, 512),
}


@pytest.mark.parametrize("model", DESIGN)
def test_peaks_follow_from_the_design_of_the_chip(model: str) -> None:
    """Units x clock x operations: a sparse number or a wrong line would be off by far."""
    units, megahertz, operations = DESIGN[model]

    assert _PEAKS[model].fp16 == pytest.approx(units * megahertz * operations / 1e6, rel=0.02)


@pytest.mark.parametrize("model", _PEAKS)
def test_precisions_of_a_gpu_keep_their_order(model: str) -> None:
    """TF32 is half as fast as 16 bit on NVIDIA's and AMD's, and float32 not faster than that."""
    peak = _PEAKS[model]

    assert peak.bf16 in (None, peak.fp16)
    assert peak.tf32 is None or peak.fp16 / peak.tf32 == pytest.approx(2, rel=0.03)
    assert peak.fp32 <= (peak.tf32 or peak.fp16)
