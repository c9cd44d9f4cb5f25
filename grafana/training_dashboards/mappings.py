# SPDX-License-Identifier: Apache-2.0
"""From values to words and colours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

from grafana_foundation_sdk.models import dashboard as model

from training_dashboards import palette
from training_dashboards.queries import STATE_CODES, VANISHED
from training_exporter import catalog

Mapping: TypeAlias = model.ValueMap | model.RangeMap | model.RegexMap | model.SpecialValueMap

_BEYOND_FLOATS: Final = 1.7e308
"""Next to the largest finite number, since JSON has no infinity."""


def _named(text: str, color: str) -> model.ValueMappingResult:
    return model.ValueMappingResult(text=text, color=color, index=0)


def _special(match: model.SpecialValueMatch) -> model.SpecialValueMap:
    return model.SpecialValueMap(
        model.DashboardSpecialValueMapOptions(match=match, result=_named("NaN", palette.BAD))
    )


_INFINITE: Final = (
    model.RangeMap(
        model.DashboardRangeMapOptions(
            from_val=_BEYOND_FLOATS, result=_named("Inf", palette.BAD)
        )
    ),
    model.RangeMap(
        model.DashboardRangeMapOptions(to=-_BEYOND_FLOATS, result=_named("-Inf", palette.BAD))
    ),
)  # fmt: skip

NOT_FINITE: Final[Sequence[Mapping]] = (_special(model.SpecialValueMatch.NA_N), *_INFINITE)
"""NaN and Inf in red. A cell without a value stays empty."""

NOT_FINITE_OR_LOST: Final[Sequence[Mapping]] = (
    _special(model.SpecialValueMatch.NULL_AND_NAN),
    *_INFINITE,
)
"""The same where a value must be there, so that a null is a NaN that was lost on the way."""

NO_VALUE: Final = model.SpecialValueMap(
    model.DashboardSpecialValueMapOptions(
        match=model.SpecialValueMatch.NULL,
        result=model.ValueMappingResult(text="no value", index=0),
    )
)
"""What the legend of curves says of a last point that is NaN, Inf or not there: for Grafana all are
gaps, and without a word of its own a gap gets that of a panel without any data."""

_STATE_COLOURS: Final = {
    catalog.COMPLETED: palette.DONE,
    catalog.STOPPED: palette.QUIET,
    catalog.STARTING: palette.QUIET,
    catalog.RUNNING: palette.AT_WORK,
    catalog.EVALUATING: palette.AT_WORK,
    catalog.SAVING: palette.AT_WORK,
    VANISHED: palette.BAD,
    catalog.CRASHED: palette.BAD,
}

STATES: Final[Sequence[Mapping]] = (
    model.ValueMap(
        {str(code): _named(state, _STATE_COLOURS[state]) for state, code in STATE_CODES.items()}
    ),
)


def words(**texts: str) -> Sequence[Mapping]:
    """Return a mapping of 0 and 1, `zero="fine", one="held down"`; 1 is what is bad."""
    named = {}
    if "zero" in texts:
        named["0"] = _named(texts["zero"], palette.QUIET)
    if "one" in texts:
        named["1"] = _named(texts["one"], palette.BAD)
    return (model.ValueMap(named),)
