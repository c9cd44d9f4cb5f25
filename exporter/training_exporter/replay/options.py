# SPDX-License-Identifier: Apache-2.0
"""The options that `replay` and `backtest` share, and the plan that they ask for."""

from __future__ import annotations

from math import isfinite
from typing import Annotated

import typer

from training_exporter.replay.columns import SIGNALS, parse_map
from training_exporter.replay.playing import Plan
from training_exporter.replay.settings import parse_options, parse_profile
from training_exporter.replay.trouble import ReplayError
from training_exporter.replay.windows import STEPPED

WINDOWS = ("steps", "rows")

Profile = Annotated[str, typer.Option(help="Detectors: robust, textbook or both.")]
Options = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KIND.OPTION=N",
        help="Try an option of a detector, such as loss_spike.jump=1.3. May be repeated.",
    ),
]
Names = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        metavar="SIGNAL=NAME",
        help=f"What a signal is called in the log; SIGNAL is one of {', '.join(SIGNALS)}.",
    ),
]
Clip = Annotated[
    float | None,
    typer.Option(min=0, help="Norm above which gradients were clipped, if the log does not say."),
]
Windows = Annotated[
    str, typer.Option(help="What the windows of textbook detectors count: steps or rows.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the report as JSON.")]


def plan_of(
    profile: str,
    options: list[str] | None,
    names: list[str] | None,
    clip: float | None,
    windows: str,
) -> Plan:
    """The plan that the options ask for.

    Raises:
        ReplayError: an option that makes no sense, naming what does.
    """
    if windows not in WINDOWS:
        raise ReplayError(f"--windows is one of {', '.join(WINDOWS)}, not {windows}")
    profiles = parse_profile(profile)
    if windows == "rows" and STEPPED not in profiles:
        raise ReplayError(f"--windows rows is for --profile {STEPPED} or both")
    if clip is not None and not isfinite(clip):
        raise ReplayError(f"--clip is a finite number, not {clip}")
    try:
        return Plan(
            profiles=profiles,
            options=parse_options(options or ()),
            names=parse_map(names or ()),
            clip_threshold=clip,
            windows_in_steps=windows == "steps",
        )
    except ValueError as error:
        raise ReplayError(f"--set: {error}") from None
