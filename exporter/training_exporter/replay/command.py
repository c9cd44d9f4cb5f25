# SPDX-License-Identifier: Apache-2.0
"""`training-exporter replay` and `training-exporter backtest`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict
from math import inf, isfinite, isnan
from pathlib import Path
from time import sleep
from typing import Annotated, TypeAlias

import typer
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from training_exporter.replay.backtest import play_all, read_labels, summaries, table_of
from training_exporter.replay.columns import STEP, TIMESTAMP
from training_exporter.replay.naming import run_name
from training_exporter.replay.openmetrics import NO_TIMES, Backfill, parse_start
from training_exporter.replay.options import Clip, Json, Names, Options, Profile, Windows, plan_of
from training_exporter.replay.outputs import require_apart, require_writable, writing
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
WIDE = 200
"""Columns of a report that goes into a file or a pipe, where nothing need be cut."""


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
            help="Judge a run that goes on, or is still to begin, by its log; on a page, too.",
        ),
    ] = False,
    speed: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            help="With --serve: how many times faster than it was; inf waits for nothing.",
            show_default="1",
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
            help="With --serve, if the log has no times, and with --start: time from row to row.",
            show_default="1",
        ),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            help="With --openmetrics: when the run began, such as 2026-01-31T10:00, if the log has"
            " no times; those that it has are not used then."
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
        _require_numbers(speed, row_seconds)
        if serve and follow:
            raise ReplayError("--follow has a page, too: give it without --serve")
        _require_possible(plan, live, as_json, openmetrics, plot)
        _require_use(
            ("--speed", speed, "--serve", live == "--serve"),
            ("--port", port, "--serve or --follow", live),
            (
                "--row-seconds",
                row_seconds,
                "--serve or --openmetrics with --start",
                live == "--serve" or (openmetrics and start is not None),
            ),
            ("--start", start, "--openmetrics", openmetrics),
            (
                "--run",
                run,
                "--serve, --follow, --openmetrics or --plot",
                live or openmetrics or plot,
            ),
        )
        row_seconds = row_seconds or 1.0
        name = run or run_name(Path(os.path.realpath(source)), is_folder=source.is_dir())
        if live:
            speed = inf if follow else speed or 1.0
            _serve(source, plan, name, port, speed, row_seconds, follow=follow)
            return
        playback = Playback(source, plan)
        require_apart(_outputs(openmetrics, plot), playback.source.paths)
        _play_and_write(playback, name, openmetrics, plot, start, row_seconds)
    except (ReplayError, OSError) as error:
        fail(str(error))
    if as_json:
        typer.echo(json.dumps(for_program(playback), indent=1))
    else:
        _print(for_person(playback))


def _play_and_write(
    playback: Playback,
    run: str,
    openmetrics: Path | None,
    plot: Path | None,
    start: str | None,
    row_seconds: float,
) -> None:
    """Judge it, and write what is asked for; raises what `_backfill` and `_draw` raise."""
    sketch = Sketch(playback.judges[0], steps_known=STEP in playback.columns.names)
    drawn = () if plot is None else (sketch.note,)
    if openmetrics is None:
        _play(playback, *drawn)
    else:
        begin = None if start is None else parse_start(start)
        _backfill(playback, openmetrics, run, begin, row_seconds, *drawn)
    if plot is not None:
        _draw(playback, sketch, run, plot)


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
    notes = [note for trial in trials for note in trial.notes]
    for line in notes:
        console.print(Text(f"Note: {line}.", style="yellow"), soft_wrap=True)
    if as_json:
        by_profile = {
            name: {kind: asdict(summary) for kind, summary in by_kind.items()}
            for name, by_kind in found.items()
        }
        report = {
            "runs": len(trials),
            "unit": marked.unit,
            "left_out": missing,
            "notes": notes,
            "profiles": by_profile,
        }
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
    if plot is not None:
        _require_plot(plot)
    outputs = _outputs(openmetrics, plot)
    for option, file in outputs.items():
        require_writable(option, file)
    require_apart(outputs)


def _outputs(openmetrics: Path | None, plot: Path | None) -> dict[str, Path]:
    """The files to write by the options that ask for them."""
    wanted = {"--openmetrics": openmetrics, "--plot": plot}
    return {option: file for option, file in wanted.items() if file is not None}


def _require_numbers(speed: float | None, row_seconds: float | None) -> None:
    """Refuse what a range does not: NaN, and an infinite time.

    Raises:
        ReplayError: naming the option.
    """
    if speed is not None and isnan(speed):
        raise ReplayError("--speed is a number, not nan")
    if row_seconds is not None and not isfinite(row_seconds):
        raise ReplayError(f"--row-seconds is a finite number of seconds, not {row_seconds}")


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


def _require_plot(file: Path) -> None:
    """Refuse a picture that could not be drawn.

    Raises:
        ReplayError: no matplotlib, or no such kind of file.
    """
    try:
        with needed_by("--plot", "matplotlib", install="'training-exporter[plot]'"):
            from training_exporter.replay.plotting import figure
    except ModuleNotFoundError as error:
        raise ReplayError(str(error)) from None
    figure.require_format(file)


def _draw(playback: Playback, sketch: Sketch, run: str, file: Path) -> None:
    """Draw what was played.

    Raises:
        ReplayError: the file cannot be written.
    """
    from training_exporter.replay.plotting import figure  # matplotlib, which not everybody has

    sketch.finish()
    with writing(file):
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
        ReplayError: no times, or the file cannot be written.
    """
    if start is None and TIMESTAMP not in playback.columns.names:
        raise ReplayError(NO_TIMES)  # before all of it is read
    with Backfill(
        playback.judges[0],
        run,
        start=start,
        row_seconds=row_seconds,
        stride=playback.stride or 1,
        troubles=playback.troubles,
    ) as backfill:
        _play(playback, backfill.note, *judged)
        with writing(file):
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
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = WIDE
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, Text))
