# SPDX-License-Identifier: Apache-2.0
"""The GPUs of a run, as its least, mean and most: 64 lines would say less and take longer."""

from __future__ import annotations

from typing import Final

from training_dashboards import palette
from training_dashboards.bands import timeline
from training_dashboards.charts import SHARE_AXIS, Axis, Curve, curves
from training_dashboards.frame import BYTES, About, Row
from training_dashboards.mappings import words
from training_dashboards.queries import RANKS as S
from training_dashboards.queries import by
from training_exporter import catalog

_NOT_IDLE: Final = 'reason!="gpu_idle"'
_NO_GPU: Final = "No GPU was read in this time"

UTILIZATION = curves(
    About(
        401,
        "GPU utilisation",
        "Share of the time in which a kernel ran, as the driver sees it; one GPU far below the "
        "mean waits for the others, or holds them up.",
        [catalog.GPU_UTILIZATION],
        _NO_GPU,
    ),
    Curve(by("run", "avg", S.of(catalog.GPU_UTILIZATION)), "{{run}} mean", palette.MIDDLE, 3),
    Curve(by("run", "min", S.of(catalog.GPU_UTILIZATION)), "{{run}} least", palette.LEAST, 1),
    Curve(by("run", "max", S.of(catalog.GPU_UTILIZATION)), "{{run}} most", palette.MOST, 1),
    axis=SHARE_AXIS,
)

MEMORY = curves(
    About(
        402,
        "GPU memory",
        "Memory of the fullest GPU: in use by all processes, held by this process's tensors, held "
        "by its allocator, the most that tensors held, and the total.",
        [
            catalog.GPU_MEMORY_USED,
            catalog.CUDA_ALLOCATED,
            catalog.CUDA_RESERVED,
            catalog.CUDA_ALLOCATED_PEAK,
            catalog.GPU_MEMORY_TOTAL,
        ],
        _NO_GPU,
    ),
    Curve(by("run", "max", S.of(catalog.GPU_MEMORY_USED)), "{{run}} in use", palette.USED, 3),
    Curve(by("run", "max", S.of(catalog.CUDA_ALLOCATED)), "{{run}} tensors", palette.ALLOCATED),
    Curve(by("run", "max", S.of(catalog.CUDA_RESERVED)), "{{run}} allocator", palette.RESERVED),
    Curve(by("run", "max", S.of(catalog.CUDA_ALLOCATED_PEAK)), "{{run}} peak", palette.PEAK, 1),
    Curve(
        by("run", "min", S.of(catalog.GPU_MEMORY_TOTAL)),
        "{{run}} total",
        palette.LIMIT,
        1,
        dashed=True,
    ),
    axis=Axis(BYTES, least=0),
)

POWER = curves(
    About(
        403,
        "GPU power",
        "Power that the GPUs of the run draw together, and the sum of their limits.",
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

TEMPERATURE = curves(
    About(
        404,
        "GPU temperature",
        "Temperature of the hottest GPU, their mean, and where the hardware slows itself down.",
        [catalog.GPU_TEMPERATURE, catalog.GPU_SLOWDOWN_TEMPERATURE],
        _NO_GPU,
        width=8,
    ),
    Curve(by("run", "max", S.of(catalog.GPU_TEMPERATURE)), "{{run}} hottest", palette.HEAT),
    Curve(by("run", "avg", S.of(catalog.GPU_TEMPERATURE)), "{{run}} mean", palette.MIDDLE, 1),
    Curve(
        by("run", "min", S.of(catalog.GPU_SLOWDOWN_TEMPERATURE)),
        "{{run}} slows down at",
        palette.LIMIT,
        1,
        dashed=True,
    ),
    axis=Axis("celsius"),
)

THROTTLING = timeline(
    About(
        405,
        "GPU throttling",
        "When clocks of any GPU of the run were held down, and why; idle GPUs apart. "
        "Empty unless some were.",
        [catalog.GPU_THROTTLED],
        "No clock was held down in this time",
        width=8,
    ),
    f"{by('run, reason', 'max', S.of(catalog.GPU_THROTTLED, _NOT_IDLE))} == 1",
    "{{run}} {{reason}}",
    words(one="held down"),
)

GPUS: Final = Row(400, "GPU", [UTILIZATION, MEMORY, POWER, TEMPERATURE, THROTTLING])
