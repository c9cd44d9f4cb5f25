# SPDX-License-Identifier: Apache-2.0
"""On real hardware: NVML against nvidia-smi, and CUDA's numbers against the driver's.

Each reading is made by a process of its own, since this one may have loaded the stand-in library.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import Any

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

READ = """
import dataclasses, json, sys, time
from training_exporter import TrainingExporter
from training_exporter.gpu.readings import AllocatorReading

gpus, device = sys.argv[1], int(sys.argv[2])
exporter = TrainingExporter(serve=False, gpus=gpus, gpu_interval=0.5, gpu_pcie=True)
uuid = ""
if device >= 0:
    import torch
    torch.ones(1, device=f"cuda:{device}")
    exporter.observe_memory((AllocatorReading(device),))
    uuid = str(torch.cuda.get_device_properties(device).uuid)
exporter.start()
until = time.monotonic() + 60
while not exporter.gpu_readings.gpus and time.monotonic() < until:
    time.sleep(0.05)
readings = exporter.gpu_readings
exporter.close()

def plain(gpu):
    fields = {each.name: getattr(gpu, each.name) for each in dataclasses.fields(gpu)}
    return {name: dict(v) if hasattr(v, "items") else v for name, v in fields.items()}

print(json.dumps({
    "uuid": uuid, "gpus": [plain(gpu) for gpu in readings.gpus],
    "failures": dict(readings.failures), "seconds": readings.duration_seconds,
    "errors": exporter.health.errors["gpu"],
}))
"""


def read(gpus: str, device: int = -1, **environ: str) -> dict[str, Any]:
    """What the exporter says in a process that uses a CUDA device, or none (-1)."""
    done = subprocess.run(
        [sys.executable, "-c", READ, gpus, str(device)],
        env={**os.environ, **environ}, capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def nvidia_smi(*columns: str) -> list[dict[str, str]]:
    """A row for each GPU."""
    program = shutil.which("nvidia-smi")
    if program is None:
        pytest.skip("nvidia-smi is not installed; it comes with the driver")
    command = [program, f"--query-gpu={','.join(columns)}", "--format=csv,noheader,nounits"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [dict(zip(columns, line.split(", "), strict=True)) for line in lines]


# nvidia-smi's column, our field, and how much of its unit ours is.
EXACT = [
    ("memory.total", "memory_total_bytes", 2**20),
    ("enforced.power.limit", "power_limit_watts", 1.0),
    ("ecc.errors.corrected.volatile.total", ("ecc_errors", "corrected"), 1.0),
    ("ecc.errors.uncorrected.volatile.total", ("ecc_errors", "uncorrected"), 1.0),
]
CLOSE = [
    ("memory.used", "memory_used_bytes", 2**20, 2**30),
    ("power.draw.instant", "power_watts", 1.0, 300.0),
    ("temperature.gpu", "temperature_celsius", 1.0, 15.0),
    ("clocks.mem", "memory_clock_hertz", 1e6, 2e9),
]


def number(text: str) -> float | None:
    """None for "[N/A]" and the like."""
    try:
        return float(text)
    except ValueError:
        return None


def test_the_readings_are_those_of_nvidia_smi() -> None:
    """All GPUs, in its order; what it calls not available we leave out."""
    columns = ["index", "uuid", "name", "driver_version", "pci.bus_id"]
    columns += [each[0] for each in (*EXACT, *CLOSE)]
    shown = nvidia_smi(*columns)
    readings = read("all")
    ours = [gpu for gpu in readings["gpus"] if ":" not in gpu["gpu"]]

    assert readings["errors"] == 0
    assert len(ours) == len(shown)
    for gpu, row in zip(ours, shown, strict=True):
        assert gpu["gpu"] == row["index"]
        assert gpu["uuid"] == row["uuid"]
        assert gpu["name"] == row["name"]
        assert gpu["driver_version"] == row["driver_version"]
        assert gpu["pci_bus_id"] == row["pci.bus_id"]
        for column, field, unit in EXACT:
            mine = gpu[field[0]].get(field[1]) if isinstance(field, tuple) else gpu[field]
            theirs = number(row[column])
            assert (mine is None) == (theirs is None), column
            assert theirs is None or mine == pytest.approx(theirs * unit, rel=1e-3), column
        for column, field, unit, tolerance in CLOSE:
            theirs = number(row[column])
            assert (gpu[field] is None) == (theirs is None), column
            assert theirs is None or abs(gpu[field] - theirs * unit) <= tolerance, column


def test_ratios_are_ratios() -> None:
    """From 0 to 1, whatever the hardware says in percent."""
    for gpu in read("all")["gpus"]:
        for field in ("utilization", "memory_utilization"):
            assert gpu[field] is None or 0 <= gpu[field] <= 1


@pytest.mark.parametrize("device", range(torch.cuda.device_count()))
def test_torch_and_the_driver_mean_the_same_gpu(device: int) -> None:
    """The device in use, and no other, by the UUID that both know."""
    readings = read("mine", device)

    assert [gpu["uuid"][4:] for gpu in readings["gpus"]] == [readings["uuid"]]
    assert [gpu["cuda_device"] for gpu in readings["gpus"]] == [device]


def test_a_choice_by_uuid_is_mapped() -> None:
    """CUDA's number is 0 then, and the driver's stays what it was."""
    last = nvidia_smi("index", "uuid")[-1]

    for choice in (last["uuid"], last["uuid"][:12]):
        readings = read("mine", 0, CUDA_VISIBLE_DEVICES=choice)
        assert [(gpu["gpu"], gpu["cuda_device"]) for gpu in readings["gpus"]] == [
            (last["index"], 0)
        ]


def test_a_process_without_torch_is_found_by_its_choice() -> None:
    """By its UUID."""
    last = nvidia_smi("index", "uuid")[-1]

    readings = read("mine", CUDA_VISIBLE_DEVICES=last["uuid"])

    assert [gpu["gpu"] for gpu in readings["gpus"]] == [last["index"]]


def test_xids_are_counted_where_the_driver_offers_events() -> None:
    """From 0; and asking for them does not wait for one."""
    readings = read("all")

    assert readings["seconds"] < 0.5 * max(1, len(readings["gpus"]))
    assert any(gpu["xids"] for gpu in readings["gpus"])
