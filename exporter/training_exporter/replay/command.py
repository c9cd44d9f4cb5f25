# SPDX-License-Identifier: Apache-2.0
"""`training-exporter replay` and `training-exporter backtest`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from math import inf
from pathlib import Path
from time import sleep
from typing import Annotated, TypeAlias

import typer
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from training_exporter.replay.backtest import play_all, read_labels, summaries, table_of
from training_exporter.replay.columns import STEP
from training_exporter.replay.openmetrics import Backfill, parse_start
from training_exporter.replay.options import Clip, Json, Names, Options, Profile, Windows, plan_of
from training_exporter.replay.playing import Plan, Playback
from training_exporter.replay.plotting.curves import Sketch
from training_exporter.replay.report import counted, for_person, for_program
from training_exporter.replay.rows import Event
from training_exporter.replay.settings import paste_lines
from training_exporter.replay.trouble import ReplayError
from training_exporter.requirements import needed_by
from training_exporter.terminal import fail, signals_interrupt

LONG = 4_000_000
"""Bytes of a log from which on there is a progress bar."""
FOLLOW_SECONDS = 1.0
Observer: TypeAlias = Callable[[Event], object]
"""Is told of each step and evaluation once it was judged."""


def replay(
    source: Annotated[Path, typer.Argument(help="A run's log, or its folder.")],
    profile: Profile = "robust",
    options: Options = None,
    names: Names = None,
    clip: Clip = None,
    windows: Windows = "steps",
    as_json: Json = False,
    openmetrics: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the run for `promtool tsdb create-blocks-from openmetrics`.",
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw the run and its anomalies, as .svg, .png or .pdf."),
    ] = None,
    serve: Annotated[
        bool, typer.Option("--serve", help="Play the run live on a page, as if it went on now.")
    ] = False,
    follow: Annotated[
        bool,
        typer.Option(
            "--follow",
            help="Judge a run that goes on, or is still to begin, by its log; with a page.",
        ),
    ] = False,
    speed: Annotated[
        float | None,
        typer.Option(
            min=0.001, help="With --serve: how many times faster than it was.", show_default="1"
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535,
            help="With --serve or --follow: port of the page; 0 is any that is free.",
            show_default="as configured",
        ),
    ] = None,
    run: Annotated[
        str | None,
        typer.Option(
            help="Name of the run, on the page and in files.", show_default="the source's name"
        ),
    ] = None,
    row_seconds: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            help="With --serve or --openmetrics: time from row to row, if the log has no times.",
            show_default="1",
        ),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            help="With --openmetrics: when the run began, if the log has no times, such as"
            " 2026-01-31T10:00."
        ),
    ] = None,
) -> None:
    """Judge a past run by the same detectors as a live one.

    SOURCE is one of these:

    Hugging Face: trainer_state.json, a checkpoint's folder or the output folder.

    TensorBoard: an event file or a folder of them.

    W&B: a .wandb file or a run's folder.

    JSON lines, such as trainer_log.jsonl, or CSV, such as Lightning's metrics.csv.
    """
    live = "--follow" if follow else "--serve" if serve else ""
    try:
        plan = plan_of(profile, options, names, clip, windows)
        _require_possible(plan, live, as_json, openmetrics, plot)
        _require_use(
            ("--speed", speed, "--serve", live == "--serve"),
            ("--port", port, "--serve or --follow", live),
            (
                "--row-seconds",
                row_seconds,
                "--serve or --openmetrics",
                live == "--serve" or openmetrics,
            ),
            ("--start", start, "--openmetrics", openmetrics),
        )
        row_seconds = row_seconds or 1.0
        name = run or source.resolve().stem
        if live:
            speed = inf if follow else speed or 1.0
            _serve(source, plan, name, port, speed, row_seconds, follow=follow)
            return
        playback = Playback(source, plan)
        sketch = Sketch(playback.judges[0], steps_known=STEP in playback.columns.names)
        drawn = () if plot is None else (sketch.note,)
        if openmetrics is None:
            _play(playback, *drawn)
        else:
            begin = None if start is None else parse_start(start)
            _backfill(playback, openmetrics, name, begin, row_seconds, *drawn)
        if plot is not None:
            _draw(playback, sketch, name, plot)
    except (ReplayError, OSError) as error:
        fail(str(error))
    if as_json:
        typer.echo(json.dumps(for_program(playback), indent=1))
    else:
        _print(for_person(playback))


def backtest(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of logs.")],
    labels: Annotated[
        Path,
        typer.Option(
            help="Table with tabs: id (name of a log without its extension), kind, first_row,"
            " last_row (or first_step, last_step), confidence."
        ),
    ],
    profile: Profile = "both",
    options: Options = None,
    names: Names = None,
    clip: Clip = None,
    windows: Windows = "steps",
    as_json: Json = False,
) -> None:
    """Compare what the detectors find in many past runs with what a person marked in them."""
    try:
        plan = plan_of(profile, options, names, clip, windows)
        marked = read_labels(labels)
        console = Console(stderr=True)
        with console.status("judging") as status:
            trials, missing = play_all(
                folder, marked, plan, progress=lambda run: status.update(f"judging {escape(run)}")
            )
    except ReplayError as error:
        fail(str(error))
    found = summaries(trials, marked.unit)
    for line in missing:
        console.print(Text(f"Left out: {line}", style="yellow"), soft_wrap=True)
    if as_json:
        by_profile = {
            name: {kind: asdict(summary) for kind, summary in by_kind.items()}
            for name, by_kind in found.items()
        }
        report = {"runs": len(trials), "unit": marked.unit, "profiles": by_profile}
        typer.echo(json.dumps(report, indent=1))
        return
    rows = sum(trial.judges[0].rows for trial in trials)
    tables = [table_of(name, by_kind, marked.unit) for name, by_kind in found.items()]
    paste = [Text(line, style="cyan") for line in paste_lines(plan.profiles, plan.options)]
    head = Text(f"{counted(len(trials), 'run')}, {counted(rows, 'row')}.")
    _print([head, *tables, *paste])


def more_soon() -> bool:
    """Wait a little, and then look again at what is being written."""
    sleep(FOLLOW_SECONDS)
    return True


def _serve(
    source: Path,
    plan: Plan,
    run: str,
    port: int | None,
    speed: float,
    row_seconds: float,
    *,
    follow: bool,
) -> None:
    """Play it on a page; raises what `Playback` and `live.serve` raise."""
    from training_exporter.replay import live  # an exporter and all that it needs

    with signals_interrupt():
        try:
            playback = Playback(source, plan, more_soon if follow else None, _say)
        except KeyboardInterrupt:  # while it is waited for
            _say("Stopped.")
            return
        live.serve(playback, run=run, port=port, speed=speed, row_seconds=row_seconds, say=_say)


def _say(line: str) -> None:
    Console(highlight=False).print(Text(line), soft_wrap=True)


def _require_possible(
    plan: Plan, live: str, as_json: bool, openmetrics: Path | None, plot: Path | None
) -> None:
    """Refuse what could not be done in the end, before a log is waited for or read.

    Args:
        plan: how to replay.
        live: the option that asks for a page, if there is one.
        as_json, openmetrics, plot: what else is asked for.

    Raises:
        ReplayError: what is asked for does not go together, or cannot be written.
    """
    if live and (as_json or openmetrics is not None or plot is not None):
        raise ReplayError("--serve and --follow go without --json, --openmetrics and --plot")
    if len(plan.profiles) > 1 and (live or openmetrics is not None):
        # The counters of two would be the same series.
        raise ReplayError(f"{live or '--openmetrics'} takes one profile, as a live run has one")
    if openmetrics is not None:
        _require_file("--openmetrics", openmetrics)
    if plot is not None:
        _require_plot(plot)


def _require_use(*options: tuple[str, object, str, object]) -> None:
    """Refuse an option that would change nothing.

    Args:
        options: each with its value, None where it is not given; what it is for; whether that was
            asked for.

    Raises:
        ReplayError: there is one.
    """
    for option, value, purpose, wanted in options:
        if value is not None and not wanted:
            raise ReplayError(f"{option} is for {purpose}")


def _require_file(option: str, file: Path) -> None:
    if not file.parent.is_dir():
        raise ReplayError(f"{option} takes a file in a folder that is there, not {file}")
    if file.is_dir():
        raise ReplayError(f"{option} takes a file, and {file} is a folder")


def _require_plot(file: Path) -> None:
    """Refuse a picture that could not be drawn or written.

    Raises:
        ReplayError: no matplotlib, or no such kind of file.
    """
    try:
        with needed_by("--plot", "matplotlib", install="'training-exporter[plot]'"):
            from training_exporter.replay.plotting import figure
    except ModuleNotFoundError as error:
        raise ReplayError(str(error)) from None
    figure.require_format(file)
    _require_file("--plot", file)


def _draw(playback: Playback, sketch: Sketch, run: str, file: Path) -> None:
    """Draw what was played; raises what `figure.save` raises."""
    from training_exporter.replay.plotting import figure  # matplotlib, which not everybody has

    sketch.finish()
    figure.save(file, playback, sketch, run)


def _backfill(
    playback: Playback,
    file: Path,
    run: str,
    start: float | None,
    row_seconds: float,
    *judged: Observer,
) -> None:
    """Judge it, and write it as OpenMetrics; others may look on.

    Raises:
        ReplayError: no times.
        OSError: the file cannot be written.
    """
    judge, troubles = playback.judges[0], playback.troubles
    with Backfill(judge, run, start=start, row_seconds=row_seconds, troubles=troubles) as backfill:
        _play(playback, backfill.note, *judged)
        backfill.save(file)


def _play(playback: Playback, *observers: Observer) -> None:
    """Judge it while others look on, with a progress bar where that takes a while."""

    def judged(event: Event) -> None:
        for observe in observers:
            observe(event)

    if playback.source.total_bytes < LONG:
        playback.play(judged=judged)
        return
    columns = (TextColumn("replaying"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=playback.source.total_bytes)
        playback.play(lambda position: bar.update(task, completed=position), judged=judged)


def _print(parts: Iterable[RenderableType]) -> None:
    """Print parts of a report; lines stay whole, since some are there to be copied."""
    console = Console(highlight=False)
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, Text))
