# SPDX-License-Identifier: Apache-2.0
"""All GPUs now: their totals, and a table of them."""

from __future__ import annotations

from typing import Any, Final

from training_dashboards import palette
from training_dashboards.charts import number
from training_dashboards.frame import BYTES, SHARE, SHORT, About, Row, steps
from training_dashboards.mappings import words
from training_dashboards.queries import PROCESS, by
from training_dashboards.queries import RANKS as S
from training_dashboards.tables import Column, table
from training_exporter import catalog
from training_exporter.catalog import Metric

_NO_GPU: Final = "No GPU was read in this time"
_NONE_NOW: Final = "No GPU is read now"
_GPU: Final = "run, rank, gpu"
_NAME: Final = "{{run}} rank {{rank}} GPU {{gpu}}"
_WIDTH, _HEIGHT = 4, 4
_NOT_IDLE: Final = 'reason!="gpu_idle"'
_UNCORRECTED: Final = f'type="{catalog.UNCORRECTED}"'


def _once(query: str) -> str:
    """Return values by GPU, one for each even when several processes report it."""
    info = S.of(catalog.GPU_INFO)
    return by("uuid", "max", f"{query} * on ({PROCESS}, gpu) group_left (uuid) {info}")


def _strip(panel: int, title: str, text: str, *metrics: Metric) -> About:
    return About(panel, title, text, [*metrics, catalog.GPU_INFO], _NONE_NOW, _WIDTH, _HEIGHT)


COUNT = number(
    _strip(1, "GPUs", "GPUs that running processes report.", catalog.GPU_UTILIZATION),
    (f"count({_once(S.of(catalog.GPU_UTILIZATION))})", "GPUs"),
    unit=SHORT,
)
UTILIZATION = number(
    _strip(
        2,
        "Mean utilisation",
        "Mean share of the time in which a kernel ran.",
        catalog.GPU_UTILIZATION,
    ),
    (f"avg({_once(S.of(catalog.GPU_UTILIZATION))})", "mean"),
    unit=SHARE,
)
MEMORY = number(
    _strip(3, "Memory in use", "Memory in use on all GPUs together.", catalog.GPU_MEMORY_USED),
    (f"sum({_once(S.of(catalog.GPU_MEMORY_USED))})", "in use"),
    unit=BYTES,
)
POWER = number(
    _strip(4, "Power", "Power that all GPUs draw together.", catalog.GPU_POWER),
    (f"sum({_once(S.of(catalog.GPU_POWER))})", "drawn"),
    unit="watt",
)
HOTTEST = number(
    _strip(5, "Hottest GPU", "Temperature of the hottest GPU.", catalog.GPU_TEMPERATURE),
    (f"max({_once(S.of(catalog.GPU_TEMPERATURE))})", "hottest"),
    unit="celsius",
)
THROTTLED = number(
    _strip(6, "GPUs throttled", "GPUs whose clocks are held down now; idle ones apart.",
           catalog.GPU_THROTTLED),
    (f"sum({_once(by(f'{PROCESS}, gpu', 'max', S.of(catalog.GPU_THROTTLED, _NOT_IDLE)))})",
     "throttled"),
    unit=SHORT,
    thresholds=steps((1, palette.BAD)),
)  # fmt: skip


def _per_gpu(metric: Metric, *matchers: str) -> str:
    return by(_GPU, "max", S.latest(metric, *matchers))


_TABLE_LINK: Final[list[dict[str, Any]]] = [
    {
        "title": "Look into this run",
        "url": "/d/training-run?var-run=${__value.raw}&${datasource:queryparam}"
        "&${job:queryparam}&${__url_time_range}",
    }
]
_COLUMNS: Final = (
    Column(
        "Where it is",
        "max by (run, rank, gpu, name, host) ("
        f"{S.latest(catalog.GPU_INFO)} * on ({PROCESS}) group_left (host) "
        f"{S.latest(catalog.RUN_INFO)})",
        None,
        labels=(("host", "Host"), ("name", "Model")),
    ),
    Column("Utilisation", _per_gpu(catalog.GPU_UTILIZATION), SHARE, bar=True),
    Column(
        "Memory",
        f"{_per_gpu(catalog.GPU_MEMORY_USED)} / {_per_gpu(catalog.GPU_MEMORY_TOTAL)}",
        SHARE,
        bar=True,
    ),
    Column("Power", _per_gpu(catalog.GPU_POWER), "watt", width=100),
    Column("Temperature", _per_gpu(catalog.GPU_TEMPERATURE), "celsius", width=120),
    Column("Clock", _per_gpu(catalog.GPU_SM_CLOCK), "hertz", width=110),
    Column(
        "Throttled",
        _per_gpu(catalog.GPU_THROTTLED, _NOT_IDLE),
        SHORT,
        mappings=words(zero="no", one="yes"),
        width=100,
    ),
    Column(
        "Xid errors",
        f"round({by(_GPU, 'sum', S.total(catalog.GPU_XID_ERRORS))})",
        SHORT,
        width=100,
        bad_from=1,
    ),
    Column(
        "Memory errors",
        f"round({by(_GPU, 'sum', S.total(catalog.GPU_ECC_ERRORS, _UNCORRECTED))})",
        SHORT,
        width=130,
        bad_from=1,
    ),
)

GPUS_TABLE = table(
    About(
        10,
        "Each GPU",
        "Each GPU of the time shown as it was last seen; errors are those of the time shown, "
        "memory errors those that could not be corrected.",
        [
            catalog.GPU_INFO,
            catalog.RUN_INFO,
            catalog.GPU_UTILIZATION,
            catalog.GPU_MEMORY_USED,
            catalog.GPU_MEMORY_TOTAL,
            catalog.GPU_POWER,
            catalog.GPU_TEMPERATURE,
            catalog.GPU_SM_CLOCK,
            catalog.GPU_THROTTLED,
            catalog.GPU_XID_ERRORS,
            catalog.GPU_ECC_ERRORS,
        ],
        _NO_GPU,
        width=24,
        height=10,
    ),
    keys=(("run", "Run"), ("rank", "Rank"), ("gpu", "GPU")),
    columns=_COLUMNS,
    links={"Run": _TABLE_LINK},
    sort=("Utilisation", False),
)


NOW: Final = Row(
    0,
    "",
    [COUNT, UTILIZATION, MEMORY, POWER, HOTTEST, THROTTLED, GPUS_TABLE],
    closed=False,
)
