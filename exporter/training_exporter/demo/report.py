# SPDX-License-Identifier: Apache-2.0
"""What the demo says at its beginning and at its end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from training_exporter.catalog import ANOMALY_KINDS
from training_exporter.demo.plan import DemoPlan, Fault
from training_exporter.forensics.text import how_to_explain
from training_exporter.program import program
from training_exporter.snapshot import Snapshot
from training_exporter.status import ReportNote

ONE_LINE = """\
from training_exporter.integrations.huggingface import PrometheusCallback
trainer = Trainer(..., callbacks=[PrometheusCallback()])"""


def welcome(plan: DemoPlan, url: str | None) -> RenderableType:
    """Where to look, and what will go wrong."""
    lines = Table.grid(padding=(0, 2))
    if url is None:
        lines.add_row("Open", Text("nothing: no port is served", style="yellow"))
    else:
        lines.add_row("Open", Text(url, style=f"bold cyan link {url}"))
        lines.add_row("Metrics", f"{url}/metrics")
    lines.add_row("Faults", _listed(plan.faults) or "none")
    if plan.left_out:
        lines.add_row("", f"left out, as the run ends before: {_listed(plan.left_out)}")
    if plan.fake_gpus:
        lines.add_row("GPUs", f"{plan.fake_gpus} without hardware: what they report is made up")
    lines.add_row("Stop", "Ctrl-C")
    return Panel(lines, box=box.ROUNDED, expand=False, title="training-exporter demo")


def _listed(faults: Iterable[Fault]) -> str:
    return ", ".join(map(str, faults))


def summary(ending: str, snapshot: Snapshot, begun: Mapping[str, Sequence[int]]) -> RenderableType:
    """How the run ended, what was found in it, and what to do next."""
    return Group(
        Text(f"\n{ending}{_final_loss(snapshot)}", style="bold"),
        _anomalies(begun),
        Text("\nIn a training of your own:\n"),
        Text(ONE_LINE, style="cyan"),
        Text(f"\nEvery metric: {program()} metrics"),
        Text(f"Other faults: {program()} demo --help"),
    )


def why_nan(report: ReportNote) -> Text:
    """What to type to learn more of the NaN; to be printed unwrapped."""
    if report.path is None:
        return Text(f"\n{report.summary}")
    command = how_to_explain(report.path)
    return Text.assemble("\nWhy there was a NaN: ", (command, "cyan"))


def _final_loss(snapshot: Snapshot) -> str:
    if snapshot.signals is None or snapshot.signals.loss is None:
        return "."
    evaluation = snapshot.evaluations.get("eval")
    held_out = f", {evaluation.loss:.3f} on text held out" if evaluation and evaluation.loss else ""
    return f": loss {snapshot.signals.loss:.3f}{held_out}."


def _anomalies(begun: Mapping[str, Sequence[int]]) -> RenderableType:
    if not begun:
        return Text("No anomaly was found.")
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("Anomaly", style="yellow")
    table.add_column("Began at step")
    table.add_column("Meaning")
    for kind, steps in begun.items():
        table.add_row(kind, ", ".join(map(str, steps)), ANOMALY_KINDS.get(kind, ""))
    return table
