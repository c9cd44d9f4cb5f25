# SPDX-License-Identifier: Apache-2.0
"""All GPUs over time: use, power, heat, clocks, errors, links and memory."""

from __future__ import annotations

from typing import Final

from training_dashboards import palette
from training_dashboards.bands import Cells, cells, timeline
from training_dashboards.charts import Axis, Curve, curves
from training_dashboards.frame import BYTES, SHARE, SHORT, About, Row
from training_dashboards.mappings import words
from training_dashboards.queries import RANKS as S
from training_dashboards.queries import by
from training_exporter import catalog

_NO_GPU: Final = "No GPU was read in this time"
_GPU: Final = "run, rank, gpu"
_NAME: Final = "{{run}} rank {{rank}} GPU {{gpu}}"
_NOT_IDLE: Final = 'reason!="gpu_idle"'

USE = cells(
    About(
        11,
        "Utilisation of each GPU",
        "Share of the time in which a kernel ran, a row for each GPU: a dark row is a GPU that is "
        "paid for and does nothing.",
        [catalog.GPU_UTILIZATION],
        _NO_GPU,
        height=10,
    ),
    by(_GPU, "max", S.of(catalog.GPU_UTILIZATION)),
    _NAME,
    Cells(unit=SHARE, most=1, exponent=1),
)
FILLED = cells(
    About(
        12,
        "Memory of each GPU",
        "Share of the memory that is in use, a row for each GPU.",
        [catalog.GPU_MEMORY_USED, catalog.GPU_MEMORY_TOTAL],
        _NO_GPU,
        height=10,
    ),
    f"{by(_GPU, 'max', S.of(catalog.GPU_MEMORY_USED))} / "
    f"{by(_GPU, 'max', S.of(catalog.GPU_MEMORY_TOTAL))}",
    _NAME,
    Cells(unit=SHARE, most=1, exponent=1),
)

DRAWN = curves(
    About(
        21,
        "Power by run",
        "Power that the GPUs of each run draw together, and the limits of all.",
        [catalog.GPU_POWER, catalog.GPU_POWER_LIMIT],
        _NO_GPU,
        width=8,
    ),
    Curve(by("run", "sum", S.of(catalog.GPU_POWER)), "{{run}} drawn", palette.POWER, fill=10),
    Curve(
        by("run", "sum", S.of(catalog.GPU_POWER_LIMIT)),
        "{{run}} limit",
        palette.LIMIT,
        1,
        dashed=True,
    ),
    axis=Axis("watt", least=0),
)
HEAT = curves(
    About(
        22,
        "Temperature by run",
        "Temperature of the hottest and the coolest GPU of each run, and where the first slows "
        "down.",
        [catalog.GPU_TEMPERATURE, catalog.GPU_SLOWDOWN_TEMPERATURE],
        _NO_GPU,
        width=8,
    ),
    Curve(by("run", "max", S.of(catalog.GPU_TEMPERATURE)), "{{run}} hottest", palette.HEAT),
    Curve(by("run", "min", S.of(catalog.GPU_TEMPERATURE)), "{{run}} coolest", palette.LEAST, 1),
    Curve(
        by("run", "min", S.of(catalog.GPU_SLOWDOWN_TEMPERATURE)),
        "{{run}} slows down at",
        palette.LIMIT,
        1,
        dashed=True,
    ),
    axis=Axis("celsius"),
)
CLOCK = curves(
    About(
        23,
        "Clock by run",
        "Clock of the fastest and the slowest GPU of each run.",
        [catalog.GPU_SM_CLOCK],
        _NO_GPU,
        width=8,
    ),
    Curve(by("run", "max", S.of(catalog.GPU_SM_CLOCK)), "{{run}} fastest", palette.MOST, 1),
    Curve(by("run", "min", S.of(catalog.GPU_SM_CLOCK)), "{{run}} slowest", palette.LEAST),
    axis=Axis("hertz"),
)
THROTTLING = timeline(
    About(
        24,
        "Why clocks were held down",
        "When clocks of any GPU were held down, and why; idle GPUs apart. Empty unless some were.",
        [catalog.GPU_THROTTLED],
        "No clock was held down in this time",
        width=24,
    ),
    f"{by('run, reason', 'max', S.of(catalog.GPU_THROTTLED, _NOT_IDLE))} == 1",
    "{{run}} {{reason}}",
    words(one="held down"),
)

XIDS = curves(
    About(
        31,
        "Xid errors",
        "Critical errors that the driver reported, by code; the runbooks say which ask for what. "
        "Empty unless there were any.",
        [catalog.GPU_XID_ERRORS],
        "None in this time",
        width=8,
    ),
    Curve(
        f"{by('run, xid', 'sum', S.increase(catalog.GPU_XID_ERRORS))} > 0",
        "{{run}} Xid {{xid}}",
        palette.BAD,
        style="bars",
        fill=60,
    ),
    axis=Axis(SHORT, least=0),
)
MEMORY_ERRORS = curves(
    About(
        32,
        "Memory errors",
        "ECC errors of GPU memory; those that could not be corrected end a program. "
        "Empty unless there were any.",
        [catalog.GPU_ECC_ERRORS],
        "None in this time",
        width=8,
    ),
    Curve(
        f"{by('run, type', 'sum', S.increase(catalog.GPU_ECC_ERRORS))} > 0",
        "{{run}} {{type}}",
        palette.BAD,
        style="bars",
        fill=60,
    ),
    axis=Axis(SHORT, least=0),
)
FAILURES = curves(
    About(
        33,
        "Failed readings",
        "Times that the driver or a GPU could not be read, by reason. Empty unless there were any.",
        [catalog.GPU_FAILURES_TOTAL],
        "None in this time",
        width=8,
    ),
    Curve(
        f"{by('run, reason', 'sum', S.increase(catalog.GPU_FAILURES_TOTAL))} > 0",
        "{{run}} {{reason}}",
        palette.WARNING,
        style="bars",
        fill=60,
    ),
    axis=Axis(SHORT, least=0),
)

NVLINK = curves(
    About(
        41,
        "NVLink",
        "Data moved over all NVLink connections of each run in a second.",
        [catalog.GPU_NVLINK_TRAFFIC],
        "No NVLink connection was read in this time",
    ),
    Curve(
        by("run, direction", "sum", S.rate(catalog.GPU_NVLINK_TRAFFIC)),
        "{{run}} {{direction}}",
        palette.MIDDLE,
    ),
    axis=Axis("binBps", least=0),
)
PCIE = curves(
    About(
        42,
        "PCI bus",
        "Recent traffic of the GPUs on the PCI bus. Empty unless the setting gpu_pcie asks for it.",
        [catalog.GPU_PCIE_THROUGHPUT],
        "Not asked for: the setting gpu_pcie turns it on",
    ),
    Curve(
        by("run, direction", "sum", S.of(catalog.GPU_PCIE_THROUGHPUT)),
        "{{run}} {{direction}}",
        palette.MIDDLE,
    ),
    axis=Axis("binBps", least=0),
)

_NO_CUDA: Final = "No process with CUDA in this time"
ALLOCATOR = curves(
    About(
        51,
        "Memory of torch's allocator",
        "On the process that holds most: memory of live tensors, of the allocator, and in pieces "
        "that cannot be given back.",
        [catalog.CUDA_ALLOCATED, catalog.CUDA_RESERVED, catalog.CUDA_INACTIVE_SPLIT],
        _NO_CUDA,
    ),
    Curve(by("run", "max", S.of(catalog.CUDA_ALLOCATED)), "{{run}} tensors", palette.ALLOCATED),
    Curve(by("run", "max", S.of(catalog.CUDA_RESERVED)), "{{run}} allocator", palette.RESERVED),
    Curve(
        by("run", "max", S.of(catalog.CUDA_INACTIVE_SPLIT)), "{{run}} fragments", palette.WARNING
    ),
    axis=Axis(BYTES, least=0),
)
SHORTAGE = curves(
    About(
        52,
        "Memory that was not to be had",
        "Times that the allocator emptied its cache to try again, and times that this did not "
        "help.",
        [catalog.CUDA_ALLOC_RETRIES, catalog.CUDA_OUT_OF_MEMORY],
        _NO_CUDA,
    ),
    Curve(
        by("run", "sum", S.increase(catalog.CUDA_ALLOC_RETRIES)),
        "{{run}} retries",
        palette.WARNING,
        style="bars",
        fill=60,
    ),
    Curve(
        by("run", "sum", S.increase(catalog.CUDA_OUT_OF_MEMORY)),
        "{{run}} out of memory",
        palette.BAD,
        style="bars",
        fill=60,
    ),
    axis=Axis(SHORT, least=0),
)


OVER_TIME: Final = (
    Row(100, "Use", [USE, FILLED], closed=False),
    Row(200, "Power, heat and clocks", [DRAWN, HEAT, CLOCK, THROTTLING], closed=False),
    Row(300, "Errors", [XIDS, MEMORY_ERRORS, FAILURES]),
    Row(400, "Links", [NVLINK, PCIE]),
    Row(500, "Memory of the processes", [ALLOCATOR, SHORTAGE]),
)
