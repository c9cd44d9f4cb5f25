# SPDX-License-Identifier: Apache-2.0
"""What the NaN forensics cost: on a healthy step, and once on a broken one."""

from __future__ import annotations

from collections.abc import Callable
from math import nan
from statistics import median
from time import perf_counter

import torch
from torch import nn

from training_exporter.device.inspection import Inspector
from training_exporter.device.modules import FirstBadModule
from training_exporter.forensics.report import About
from training_exporter.forensics.text import summary
from training_exporter.forensics.watch import NonFiniteWatch, compose
from training_exporter.signals import StepSignals

LAYERS = 50
WIDTH = 1400
REPEATS = 5
HEALTHY = 100_000


def milliseconds(work: Callable[[], object]) -> float:
    took = []
    for _ in range(REPEATS):
        began = perf_counter()
        work()
        took.append(perf_counter() - began)
    return 1e3 * median(took)


def healthy() -> tuple[float, float]:
    """Microseconds of a healthy step: the watch, and keeping a batch of three tensors."""
    steps = [StepSignals(step, 0.0, 2.0, 1.0) for step in range(1, HEALTHY + 1)]
    watch, inspector = NonFiniteWatch(), Inspector()
    began = perf_counter()
    for signals in steps:
        watch.observe(signals)
    watched = perf_counter() - began
    batch = {name: torch.ones(8, 128) for name in ("input_ids", "attention_mask", "labels")}
    began = perf_counter()
    for step in range(HEALTHY):
        inspector.keep(batch)
        inspector.close_step(step)
    kept = perf_counter() - began
    return 1e6 * watched / HEALTHY, 1e6 * kept / HEALTHY


def main(_: list[str]) -> None:
    watched, kept = healthy()
    print(f"healthy step: watch {watched:.2f} us, keeping the batch {kept:.2f} us")
    model = nn.Sequential(*[nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)])
    size = sum(parameter.numel() for parameter in model.parameters())
    batch = torch.ones(64, WIDTH)
    model(batch).sum().backward()
    norms = milliseconds(lambda: nn.utils.clip_grad_norm_(model.parameters(), 1e9))
    inspector = Inspector()
    finite = milliseconds(lambda: inspector.begin(1, model, now=1).findings())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(nan)
    spoilt = milliseconds(lambda: inspector.begin(1, model, now=1).findings())
    print(f"{size / 1e6:.0f}M parameters, once per report, in ms: all finite {finite:.0f},")
    print(f"  all NaN {spoilt:.0f}; beside it one clip_grad_norm_ {norms:.0f}")
    with torch.no_grad():
        plain = milliseconds(lambda: model(batch))
        watched_pass = milliseconds(lambda: _watched(model, batch))
    print(f"forward pass {plain:.0f} ms, in forward-hook mode {watched_pass:.0f} ms")
    event = NonFiniteWatch().observe(StepSignals(1, 0.0, nan))
    assert event is not None
    findings = inspector.begin(1, model, now=1).findings()
    words = milliseconds(lambda: summary(compose(event, findings, About("run", 0))))
    print(f"the report and its line for the log: {words:.2f} ms")


def _watched(model: nn.Module, batch: torch.Tensor) -> None:
    with FirstBadModule(model, step=1):
        model(batch)


if __name__ == "__main__":
    main([])
