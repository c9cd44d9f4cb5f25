# SPDX-License-Identifier: Apache-2.0
"""The whole metrics page of a scripted run: what the tools of others say of it, and its text."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Mapping
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.parser import text_string_to_metric_families as classic_families

from training_exporter.catalog import CATALOG, COMMON_LABELS, LOSS_SPIKE, NON_FINITE, XIDS
from training_exporter.collectors.cuda_memory import CudaMemoryCollector
from training_exporter.collectors.gpu import GpuCollector
from training_exporter.collectors.guard import GuardedCollectors
from training_exporter.collectors.layers import LayerCollector
from training_exporter.collectors.own import OwnCollector
from training_exporter.collectors.training import TrainingCollector
from training_exporter.detectors.base import HEALTHY, WARMING_UP, Finding, Verdict
from training_exporter.gpu.readings import AllocatorReading, GpuReading, GpuReadings
from training_exporter.layers.magnitudes import Magnitudes, MagnitudeTotals
from training_exporter.layers.readings import ParameterNorms, ParameterTable
from training_exporter.layers.shown import FirstNonFinite, LayerBoard, LayerState, LayerView
from training_exporter.monitor import TrainingMonitor
from training_exporter.signals import Evaluation, StepSignals
from training_exporter.status import ExporterHealth, ForwardPasses, ReportNote, RunStatus
from training_exporter.web.exposition import render

GOLDEN = Path(__file__).parent.parent / "golden" / "metrics.prom"
OPENMETRICS = "application/openmetrics-text;version=1.0.0"
ALLOCATOR = AllocatorReading(1, 3e9, 5e9, 6e9, 7e9, 1e8, 8e10, 2.0, 1.0)
LOSSES = [4.0, 3.5, 3.25, 3.0, 9.5, 2.75, nan, 2.5, inf, 2.25]


class Above:
    """The simplest of detectors, whose findings do not change with the real ones."""

    def __init__(self, kind: str, threshold: float) -> None:
        self.kind = kind
        self._threshold = threshold
        self._seen = 0

    def observe(self, signals: StepSignals) -> Verdict:
        self._seen += 1
        if self._seen < 3:
            return WARMING_UP
        if signals.loss is not None and signals.loss > self._threshold:
            return Finding(signals.loss, self._threshold)
        return HEALTHY

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


def scripted_monitor() -> TrainingMonitor:
    """Ten steps with a spike, a NaN and an infinity in them, and an evaluation."""
    monitor = TrainingMonitor([Above(LOSS_SPIKE, 5.0), Above(NON_FINITE, 1e9)])
    for step, loss in enumerate(LOSSES, 1):
        monitor.observe(
            StepSignals(
                step=step,
                timestamp=1_700_000_000.0 + step,
                loss=loss,
                grad_norm=0.25 * step,
                clip_threshold=1.0,
                learning_rates={"decay": 3e-4, 'say "no"\\': 1e-5},
                loss_scale=65536.0 / (1 + (step > 6)),
                epoch=step / 8,
                max_steps=100,
                tokens=4096,
                samples=8,
                step_seconds=0.125 * step,
                data_wait_seconds=0.0625,
                memory_allocated_bytes=3e9,
                positions=5120,
                flops=2.5e12,
            )
        )
    monitor.observe_evaluation(
        Evaluation(10, 1_700_000_011.0, "wiki\ntext", 2.5, {"accuracy": 0.5, "perplexity": nan})
    )
    return monitor


def scripted_gpus() -> GpuReadings:
    """A GPU of which everything is known, a MIG device, and a GPU that was lost."""
    whole = GpuReading(
        gpu="0", uuid="GPU-0a1b", name="NVIDIA H100", driver_version="570.86",
        pci_bus_id="00000000:3B:00.0", cuda_device=1, utilization=0.97, memory_utilization=0.5,
        memory_used_bytes=6e10, memory_free_bytes=2e10, memory_total_bytes=8e10,
        power_watts=650.5, power_limit_watts=700.0, temperature_celsius=71.0,
        slowdown_celsius=89.0, sm_clock_hertz=1.98e9, memory_clock_hertz=2.6e9,
        throttled={"sw_power_cap": 1.0, "hw_thermal": 0.0}, performance_state=0.0, fan_speed=0.45,
        energy_joules=123456.789, ecc_errors={"corrected": 7.0, "uncorrected": 0.0},
        remapped_rows={"corrected": 0.0, "uncorrected": 1.0}, row_remap_pending=1.0,
        row_remap_failed=0.0, retired_pages={"corrected": 2.0, "uncorrected": 0.0},
        xids=dict.fromkeys(XIDS, 0.0), pcie={"sent": 1e9, "received": 2e9},
        nvlinks={"active": 17.0, "inactive": 1.0}, nvlink_traffic={"sent": 5e12, "received": 6e12},
    )  # fmt: skip
    part = GpuReading(gpu="1:0", uuid="MIG-2c", name="NVIDIA H100 MIG 1g", memory_used_bytes=1e9)
    lost = GpuReading(gpu="2", uuid="GPU-3d", lost=True, xids={"79": 1.0})
    return GpuReadings(
        gpus=(whole, part, lost), timestamp=1_700_000_012.0, duration_seconds=0.25, stalled=False,
        failures={"gpu_lost": 1.0, "driver_stalled": 0.0},
    )  # fmt: skip


def scripted_layers(*shards: bool) -> LayerView | None:
    """A pass over three layers; of those that are sharded this process has a part."""
    names = ("embed.weight", "layers.0.up.weight", "layers.1.up.weight")
    table = ParameterTable(names, shards, (1, 1, 1))
    norms = ParameterNorms(10, table, (0.75, nan, 1.5), (8.0, 4.0, 2.0), (0.5, 0.25, 0.125), 10)
    board = LayerBoard("module")
    board.state = LayerState(norms, {"L0.up": 2}, FirstNonFinite("L0.up", 9))
    return board.view()


def scripted_magnitudes() -> MagnitudeTotals:
    """A pass over 64 values: a zero, NaN, and one of each power of two."""
    counts = (2, *[1] * 61)
    return MagnitudeTotals().plus(Magnitudes(counts, 2.0**21, 64, 1, 15, 11, 1))


def scripted_registry(*, sharded: bool = False) -> CollectorRegistry:
    monitor, health = scripted_monitor(), ExporterHealth()
    status = RunStatus(
        run='tiny "run"',
        rank=1,
        state="running",
        info={
            "framework": "torch",
            "model": "GPT",
            "host": "node-1",
            "world_size": "2",
            "profile": "robust",
        },
        logged={"rewards/chosen": 0.75, "kl": -1e-3},
        nan_filter=True,
        compute={"forward_backward": 5.5, "optimizer": 0.75},
        forward=ForwardPasses(begun=9, ended=8, seconds=1.75),
        peak_flops=1e13,
        report=ReportNote("loss", "loss NaN at step 7", "/runs/report.json", True),
        reports=1,
    )
    health.count_error("step")
    health.sink_drops = lambda: {"slack": 3}
    collectors = {
        "training": TrainingCollector(lambda: status, lambda: monitor.snapshot),
        "layers": LayerCollector(
            lambda: status.labels,
            lambda: scripted_layers(False, False, sharded),
            scripted_magnitudes,
        ),
        "gpu": GpuCollector(lambda: status.labels, scripted_gpus),
        "cuda_memory": CudaMemoryCollector(lambda: status.labels, lambda: (ALLOCATOR,)),
        "exporter": OwnCollector(lambda: status.labels, health),
    }
    registry = CollectorRegistry()
    registry.register(GuardedCollectors(collectors, lambda: status.labels, lambda: None))
    return registry


@pytest.fixture
def classic() -> str:
    """The page as Prometheus 2 and people see it."""
    return render(scripted_registry(), "")[0].decode()


@pytest.fixture
def openmetrics() -> str:
    """The page as Prometheus prefers it."""
    return render(scripted_registry(), OPENMETRICS)[0].decode()


def test_promtool_finds_nothing(classic: str, binary: Callable[[str], str]) -> None:
    """`promtool check metrics`, the linter of Prometheus, is content."""
    check = subprocess.run(
        [binary("promtool"), "check", "metrics"],
        input=classic.encode(), capture_output=True, timeout=30, check=False,
    )  # fmt: skip
    assert (check.returncode, check.stdout, check.stderr) == (0, b"", b"")


def test_the_strict_parser_accepts_it(openmetrics: str) -> None:
    """prometheus_client's OpenMetrics parser, stricter than Prometheus, reads every family."""
    families = {family.name: family for family in text_string_to_metric_families(openmetrics)}
    assert families["training_anomalies"].type == "counter"
    assert families["training_step_duration_seconds"].type == "histogram"


def test_every_metric_of_the_catalogue_is_there(classic: str) -> None:
    """A run that knows everything shows everything, each series with the common labels; layers
    are whole in one and sharded in another."""
    sharded = render(scripted_registry(sharded=True), "")[0].decode()
    families = [*classic_families(classic), *classic_families(sharded)]
    samples = [sample for family in families for sample in family.samples]
    shown = {re.sub(r"_(bucket|sum|count)$", "", sample.name) for sample in samples}
    assert shown == set(CATALOG)
    assert all(set(COMMON_LABELS) <= set(sample.labels) for sample in samples)


def test_both_formats_say_the_same(classic: str, openmetrics: str) -> None:
    """The formats differ in their headers, not in a single series."""

    def series(page: str) -> list[str]:
        return [line for line in comparable(page).splitlines() if not line.startswith("#")]

    assert series(classic) == series(openmetrics)


def comparable(page: str) -> str:
    """The page without what differs from machine to machine, down to the last bits of a sum."""
    page = re.sub(r" (\d\.\d{12,})$", lambda number: f" {float(number[1]):.12g}", page, flags=re.M)
    page = re.sub(r'(version=")[^"]*"', r'\1X"', page)
    return re.sub(r"(_collector_duration_seconds\{.*\}) \S+", r"\1 0", page)


def test_golden_page(classic: str) -> None:
    """The page is the one under review in tests/golden; a change of it is a change users see.

    To accept a change: UPDATE_GOLDEN=1 pytest tests/contract/test_exposition_page.py
    """
    page = comparable(classic)
    if os.environ.get("UPDATE_GOLDEN") == "1":
        GOLDEN.write_text(page, encoding="utf-8")
    assert page == GOLDEN.read_text(encoding="utf-8")
