# SPDX-License-Identifier: Apache-2.0
"""Is it fast: tokens, step times, and where the time goes."""

from __future__ import annotations

from typing import Final

from training_dashboards import palette
from training_dashboards.bands import Cells, cells
from training_dashboards.charts import SHARE_AXIS, Axis, Curve, curves
from training_dashboards.frame import SECONDS, SHORT, TOKENS_PER_SECOND, About, Row
from training_dashboards.queries import RANKS as S
from training_dashboards.queries import by
from training_exporter import catalog

TOKENS = curves(
    About(
        301,
        "Tokens per second over time",
        "Tokens per second of all ranks together, waiting for data included; evaluation, saving "
        "and logging apart.",
        [catalog.TOKENS_PER_SECOND],
        "No tokens counted in this time",
    ),
    Curve(
        by("run", "sum", S.of(catalog.TOKENS_PER_SECOND)), "{{run}}", palette.THROUGHPUT, fill=10
    ),
    axis=Axis(TOKENS_PER_SECOND, least=0),
)

STEP_TIME = curves(
    About(
        302,
        "Step time",
        "How long steps take, waiting for data apart: half of them, 95 % and 99 % at most so long. "
        "Quantiles are as exact as the buckets of the histogram; the mean is exact.",
        [catalog.STEP_DURATION],
        "No step in this time",
    ),
    *(
        Curve(
            f"histogram_quantile({share}, "
            f"{by('run, le', 'sum', S.rate(catalog.STEP_DURATION, part='_bucket'))})",
            f"{{{{run}}}} {name}",
            colour,
        )
        for share, name, colour in (
            (0.5, "50 %", palette.LEAST),
            (0.95, "95 %", palette.MOST),
            (0.99, "99 %", palette.WARNING),
        )
    ),
    Curve(
        f"{by('run', 'sum', S.rate(catalog.STEP_DURATION, part='_sum'))} / "
        f"{by('run', 'sum', S.rate(catalog.STEP_DURATION, part='_count'))}",
        "{{run}} mean",
        palette.MIDDLE,
        width=3,
    ),
    axis=Axis(SECONDS, soft_least=0),
)

STEP_TIMES = cells(
    About(
        303,
        "Step times",
        "How many steps a second took how long, over all chosen runs and ranks: two bands are two "
        "kinds of step.",
        [catalog.STEP_DURATION],
        "No step in this time",
    ),
    by("le", "sum", S.rate(catalog.STEP_DURATION, part="_bucket")),
    "{{le}}",
    Cells(unit=SHORT, axis_unit=SECONDS, buckets=True),
)

_PARTS = (
    (
        by("run", "avg", S.rate(catalog.DATA_WAIT)),
        "{{run}} waits for data",
        palette.WAITING,
    ),
    (
        by("run, phase", "avg", S.rate(catalog.COMPUTE)),
        "{{run}} {{phase}}",
        palette.COMPUTE,
    ),
    (
        by("run, activity", "avg", S.rate(catalog.PAUSE)),
        "{{run}} {{activity}}",
        palette.PAUSE,
    ),
)
TIME_SPLIT = curves(
    About(
        304,
        "Where the time goes",
        "Share of the time spent waiting for data, computing and pausing, as means over the ranks; "
        "they need not add up, since computing is the time of the device.",
        [catalog.DATA_WAIT, catalog.COMPUTE, catalog.PAUSE],
        "No step in this time",
    ),
    *(Curve(query, name, colour) for query, name, colour in _PARTS),
    axis=SHARE_AXIS,
)

MFU = curves(
    About(
        305,
        "Model FLOPs utilisation",
        "Share of the GPU's dense peak that the model's own arithmetic makes use of, the mean and "
        "the least of the ranks.",
        [catalog.MFU],
        "Unknown: no GPU with a known peak, or a model whose arithmetic is not understood",
        width=8,
    ),
    Curve(by("run", "avg", S.of(catalog.MFU)), "{{run}} mean", palette.MIDDLE, fill=10),
    Curve(by("run", "min", S.of(catalog.MFU)), "{{run}} least", palette.LEAST, width=1),
    axis=SHARE_AXIS,
)

FLOPS = curves(
    About(
        306,
        "Model FLOP/s",
        "Floating-point operations a second that the model needed, of all ranks together.",
        [catalog.MODEL_FLOPS_PER_SECOND],
        "Unknown: a model whose arithmetic is not understood",
        width=8,
    ),
    Curve(
        by("run", "sum", S.of(catalog.MODEL_FLOPS_PER_SECOND)),
        "{{run}}",
        palette.COMPUTE,
    ),
    axis=Axis("flops", least=0),
)

PADDING = curves(
    About(
        307,
        "Padding",
        "Recent share of padding among the positions that were computed: arithmetic for nothing.",
        [catalog.PADDING_RATIO],
        "Unknown: no mask tells padding apart",
        width=8,
    ),
    Curve(by("run", "avg", S.of(catalog.PADDING_RATIO)), "{{run}}", palette.WAITING, fill=10),
    axis=SHARE_AXIS,
)

THROUGHPUT: Final = Row(
    300, "Throughput", [TOKENS, TIME_SPLIT, STEP_TIME, STEP_TIMES, MFU, FLOPS, PADDING]
)
