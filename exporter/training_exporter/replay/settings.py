# SPDX-License-Identifier: Apache-2.0
"""Options of detectors from the command line, and back to what a training script takes."""

from __future__ import annotations

from collections.abc import Iterable

from training_exporter.config import (
    DETECTORS_VARIABLE,
    ENV_PREFIX,
    PROFILE_NAMES,
    ExporterConfig,
)
from training_exporter.detectors import Options
from training_exporter.replay.trouble import ReplayError
from training_exporter.replay.windows import own_options

BOTH = "both"


def parse_options(texts: Iterable[str]) -> Options:
    """Options by kind from texts such as `loss_spike.jump=2`, the form of the variable.

    Raises:
        ReplayError: a text that is none.
    """
    try:
        return ExporterConfig.from_environ({DETECTORS_VARIABLE: ",".join(texts)}).detectors
    except ValueError as error:
        raise ReplayError(str(error).replace(DETECTORS_VARIABLE, "--set")) from None


def parse_profile(text: str) -> tuple[str, ...]:
    """The profiles that are meant.

    Raises:
        ReplayError: an unknown one.
    """
    if text == BOTH:
        return PROFILE_NAMES
    if text not in PROFILE_NAMES:
        raise ReplayError(f"--profile is one of {', '.join((*PROFILE_NAMES, BOTH))}, not {text}")
    return (text,)


def paste_lines(profiles: Iterable[str], options: Options) -> list[str]:
    """The configuration that judges a live run with these options, as keywords and as variables of
    the environment; nothing where there are no options."""
    lines = ["", "To judge live runs so:"] if options else []
    for profile in profiles if options else ():
        given = own_options(profile, options)
        if not given:
            continue
        flat = [f"{k}.{name}={v:g}" for k, values in given.items() for name, v in values.items()]
        lines.append(f"PrometheusCallback(profile={profile!r}, detectors={given!r})")
        lines.append(f"{ENV_PREFIX}PROFILE={profile} {DETECTORS_VARIABLE}={','.join(flat)}")
    return lines
