# SPDX-License-Identifier: Apache-2.0
"""Options of detectors for logs in which a row is not a step."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import Parameter, signature

from training_exporter.detectors import Options, build_detectors

IN_STEPS = {"loss_plateau": "window", "gradient_vanishing": "lag", "clipping_excess": "window"}
"""Windows of the published formulas, which count optimiser steps. The robust profile was tuned on
the rows of real logs, 1 to 500 steps apart, and counts rows."""
STEPPED = "textbook"
LEAST_ROWS = 10
"""Of fewer rows no window says anything."""


def profile_options(profile: str, options: Options, stride: int) -> dict[str, dict[str, float]]:
    """Options for rows that are `stride` steps apart, limited to those that the profile has.

    Raises:
        ValueError: a value outside its range.
    """
    ours = own_options(profile, options)
    build_detectors(profile, ours)
    if profile == STEPPED and stride > 1:
        valid = _parameters(profile)
        for kind, name in IN_STEPS.items():
            given = ours.setdefault(kind, {})
            window = given.get(name, valid[kind][name].default)
            given[name] = max(LEAST_ROWS, round(window / stride))
    return ours


def own_options(profile: str, options: Options) -> dict[str, dict[str, float]]:
    """Those of the options that a profile has."""
    valid = _parameters(profile)
    ours = {
        kind: {name: value for name, value in given.items() if name in valid.get(kind, {})}
        for kind, given in options.items()
    }
    return {kind: given for kind, given in ours.items() if given}


def require_known(profiles: tuple[str, ...], options: Options) -> None:
    """Refuse an option that none of the profiles has.

    Raises:
        ValueError: naming those that the first of them has.
    """
    for kind, given in options.items():
        for name, value in given.items():
            if not any(name in _parameters(each).get(kind, {}) for each in profiles):
                build_detectors(profiles[0], {kind: {name: value}})


def _parameters(profile: str) -> dict[str, Mapping[str, Parameter]]:
    """The options of each kind."""
    return {each.kind: signature(type(each)).parameters for each in build_detectors(profile)}
