# SPDX-License-Identifier: Apache-2.0
"""The command line. What is heavy is imported by the command that needs it."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from time import time
from typing import Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.markdown import Markdown
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from training_exporter import reference
from training_exporter._version import __version__
from training_exporter.assets import FORMATS, AssetsError, shipped_files, write_files
from training_exporter.catalog import Metric
from training_exporter.config import DEFAULT_PORT
from training_exporter.demo.plan import (
    DEFAULT_FAULTS,
    FAULTS,
    MAX_FAKE_GPUS,
    DemoError,
    DemoPlan,
    Fault,
    default_faults,
    parse_faults,
)
from training_exporter.forensics.jsonform import ReportError
from training_exporter.forensics.text import explain as explain_report
from training_exporter.lifecycle.blackbox_format import KEPT_STEPS
from training_exporter.lifecycle.blackbox_reader import BoxError, read_box
from training_exporter.lifecycle.blackbox_text import ROWS, described
from training_exporter.replay.command import backtest, replay
from training_exporter.terminal import USAGE_ERROR, fail, say_error

DEFAULT_STEPS = 3000
MEANING_INDENT = 4
DEMO_NEEDS = ("torch", "transformers", "accelerate")

DEMO_HELP = f"""\
Train a small real model on the CPU, cause real faults in it, and serve what the exporter sees.

Ctrl-C ends the run, which is no error.

The faults, unless you choose others, are {", ".join(map(str, DEFAULT_FAULTS))}.

Kinds of fault:

{chr(10).join(f"* [cyan]{kind}[/]: {meaning}" for kind, meaning in FAULTS.items())}
"""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Prometheus metrics and anomaly detection from inside a training run.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"training-exporter {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Say the version."),
    ] = False,
) -> None:
    """What comes before a command."""


@app.command(help=DEMO_HELP)
def demo(
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = DEFAULT_STEPS,
    port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, help="Port to serve on; 0 is any.", show_default=str(DEFAULT_PORT)
        ),
    ] = None,
    run: Annotated[str | None, typer.Option(help="Name of the run.", show_default="demo")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Decides weights, text and its order.")] = 0,
    fault: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND@STEP", help="A fault and its first step. May be repeated."),
    ] = None,
    healthy: Annotated[
        bool, typer.Option("--healthy", "--no-faults", help="No fault at all.")
    ] = False,
    eval_every: Annotated[
        int, typer.Option(min=0, help="Steps between evaluations; 0 is none.")
    ] = 100,
    linger: Annotated[
        float,
        typer.Option(min=0, help="Seconds to go on serving after the end; inf is until Ctrl-C."),
    ] = 0,
    fake_gpus: Annotated[
        int,
        typer.Option(min=0, max=MAX_FAKE_GPUS, help="GPUs to pretend; 0 is none."),
    ] = 0,
) -> None:
    faults, left_out = _faults(fault or [], healthy, steps)
    plan = DemoPlan(
        steps=steps,
        seed=seed,
        faults=faults,
        left_out=left_out,
        run=run,
        port=port,
        eval_every=eval_every,
        linger=linger,
        fake_gpus=fake_gpus,
    )
    _require(*DEMO_NEEDS)
    raise typer.Exit(_run(plan))


def _faults(
    texts: list[str], healthy: bool, steps: int
) -> tuple[tuple[Fault, ...], tuple[Fault, ...]]:
    """The faults to cause, and those of the default ones that the run is too short for."""
    if healthy and texts:
        fail("a healthy run has no faults: give either --healthy or --fault")
    try:
        chosen = parse_faults(texts, steps=steps)
    except ValueError as error:
        fail(str(error))
    return (chosen, ()) if chosen or healthy else default_faults(steps)


def _require(*modules: str) -> None:
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        fail(
            f"the demo needs {', '.join(missing)}, which this Python has not. Install it with:"
            " pip install 'training-exporter[transformers]'"
        )


def _run(plan: DemoPlan) -> int:
    console = Console(highlight=False)
    with console.status("loading PyTorch and transformers"):
        from training_exporter.demo.run import run_demo
    try:
        return run_demo(plan, console)
    except DemoError as error:
        fail(str(error))


@app.command()
def metrics(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="As Markdown, like docs/metrics.md.")
    ] = False,
) -> None:
    """List every metric: its name, type, labels and meaning.

    Into a pipe or a file, each metric is one line, with tabs between the four.
    """
    console = Console()
    if markdown:
        typer.echo(reference.metrics_markdown(), nl=False)
    elif console.is_terminal:
        for section, entries in reference.sections().items():
            console.print(_metrics_of(section, entries))
    else:
        typer.echo("\n".join(reference.metrics_lines()))


@app.command()
def detectors(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="As Markdown, like docs/detectors.md.")
    ] = False,
) -> None:
    """Explain every detector: its rule and its options, in both profiles."""
    text = reference.detectors_markdown()
    if markdown:
        typer.echo(text, nl=False)
    else:
        Console().print(Markdown(text.partition("-->")[2]))


@app.command()
def explain(report: Annotated[Path, typer.Argument(help="A report's file.")]) -> None:
    """Explain a report on a NaN: the likely cause, and what to try first."""
    try:
        text = explain_report(report)
    except ReportError as error:
        fail(str(error))
    Console().print(Markdown(text))


@app.command()
def assets(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write into.")],
    form: Annotated[str, typer.Option("--format", help=f"One of {', '.join(FORMATS)}.")] = "files",
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite files that say something else.")
    ] = False,
) -> None:
    """Write the alert rules, the routing, the dashboards and their provisioning into a folder."""
    if form not in FORMATS:
        fail(f"--format is one of {', '.join(FORMATS)}, not {form}")
    try:
        written = write_files(folder, FORMATS[form](shipped_files()), overwrite=force)
    except AssetsError as error:
        fail(str(error))
    typer.echo("\n".join(map(str, written)))


@app.command()
def blackbox(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Files that end in .blackbox.")
    ],
    steps: Annotated[
        int, typer.Option(min=0, max=KEPT_STEPS, help="How many of the last steps to show.")
    ] = ROWS,
) -> None:
    """Show where a run was when its process ended, also one that was killed."""
    unreadable = [path for path in files if not _show_box(path, steps)]
    if unreadable:
        raise typer.Exit(USAGE_ERROR)


app.command()(replay)
app.command()(backtest)


def _show_box(path: Path, steps: int) -> bool:
    """Show a black box, or the error; whether there was one."""
    try:
        text = described(read_box(path), now=time(), rows=steps)
    except BoxError as error:
        say_error(str(error))
        return False
    Console().print(Markdown(text))
    return True


def _metrics_of(section: str, entries: Iterable[Metric]) -> RenderableType:
    # No table: beside the longest names a column has no room in 80 characters.
    parts: list[RenderableType] = [Text(section, style="bold")]
    for metric in entries:
        labels = f" by {', '.join(metric.labels)}" if metric.labels else ""
        first = Table.grid(padding=(0, 2))  # so that many labels are wrapped below each other
        first.add_row(Text(metric.name, style="cyan"), Text(f"{metric.kind}{labels}", style="dim"))
        parts.append(first)
        parts.append(Padding(Text(metric.help), (0, 0, 0, MEANING_INDENT)))
    return Group(*parts, "")
