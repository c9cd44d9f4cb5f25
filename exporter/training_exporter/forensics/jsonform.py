# SPDX-License-Identifier: Apache-2.0
"""Reports as JSON that strict parsers read, and back.

JSON has no NaN and no infinity; they are the texts "NaN", "Infinity" and "-Infinity" here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import MISSING, fields
from math import inf, nan
from typing import Any, Final

from training_exporter.forensics.report import (
    SCHEMA_VERSION,
    About,
    Gap,
    Inspection,
    Labels,
    ModuleFinding,
    Report,
    StepRow,
    TensorFinding,
)
from training_exporter.values import json_ready

_NUMBER_OF: Final = {"NaN": nan, "Infinity": inf, "-Infinity": -inf}

_Reader = Callable[[Any], Any]


class ReportError(ValueError):
    """A text is no report that can be read; the message is one line for a person."""


def to_json(report: Report) -> str:
    """A report as JSON, with a line break at its end."""
    values = {name.name: getattr(report, name.name) for name in fields(report)}
    plain = {"schema_version": SCHEMA_VERSION, **json_ready(values)}
    return json.dumps(plain, indent=1, allow_nan=False) + "\n"


def from_json(text: str) -> Report:
    """The report in a JSON text. Fields that are not known, of a later release, are ignored.

    Raises:
        ReportError: no JSON, no report, another schema version, or a field missing or wrong.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ReportError(f"this is not JSON: {error}") from None
    if not isinstance(values, dict) or "schema_version" not in values:
        raise ReportError("this is no report of training-exporter: it has no schema_version")
    version = values["schema_version"]
    if version != SCHEMA_VERSION:
        raise ReportError(
            f"the report has schema version {version!r}, and this release reads {SCHEMA_VERSION}"
        )
    try:
        report: Report = _report(values)
    except ValueError as error:
        raise ReportError(f"the report cannot be read: {error}") from None
    return report


# Readers: from what JSON gave to what a field holds; ValueError when it is something else.


def _number(value: Any) -> float:
    if isinstance(value, str) and value in _NUMBER_OF:
        return _NUMBER_OF[value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"expected a number, got {_short(value)}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError("expected a number that a float can hold") from None


def _exactly(kind: type, name: str) -> _Reader:
    def read(value: Any) -> Any:
        if type(value) is not kind:
            raise ValueError(f"expected {name}, got {_short(value)}")
        return value

    return read


def _optional(reader: _Reader) -> _Reader:
    return lambda value: None if value is None else reader(value)


def _many(reader: _Reader) -> _Reader:
    def read(values: Any) -> Any:
        return tuple([reader(value) for value in _a_list(values)])

    return read


def _by_name(reader: _Reader) -> _Reader:
    def read(values: Any) -> Any:
        return {name: _within(name, reader, value) for name, value in _an_object(values).items()}

    return read


def _record(kind: Any, /, **readers: _Reader) -> _Reader:
    """Reads an object field by field; a field with a default may be missing."""
    needed = _without_default(kind)

    def read(values: Any) -> Any:
        given = _an_object(values)
        missing = [name for name in readers if name in needed and name not in given]
        if missing:
            raise ValueError(f"{missing[0]} is missing")
        return kind(
            **{
                name: _within(name, reader, given[name])
                for name, reader in readers.items()
                if name in given
            }
        )

    return read


def _without_default(kind: Any) -> frozenset[str]:
    if kind is not Report:
        return frozenset(kind._fields) - frozenset(kind._field_defaults)
    absent = [one.name for one in fields(kind) if one.default is one.default_factory is MISSING]
    return frozenset(absent)


def _within(name: str, reader: _Reader, value: Any) -> Any:
    try:
        return reader(value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _a_list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"expected a list, got {_short(value)}")
    return value


def _an_object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, got {_short(value)}")
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


_text, _whole = _exactly(str, "a text"), _exactly(int, "a whole number")
_flag = _exactly(bool, "true or false")
_counts: Final = {"shape": _many(_whole), "dtype": _text, "nan": _whole, "inf": _whole}

_inspection = _record(
    Inspection,
    step=_whole,
    checked=_whole,
    bad=_whole,
    worst=_many(_record(TensorFinding, name=_text, **_counts)),
    before_update=_flag,
)
_labels = _record(
    Labels,
    name=_text,
    elements=_whole,
    ignored=_whole,
    least=_optional(_whole),
    most=_optional(_whole),
    classes=_optional(_whole),
)
_module = _record(
    ModuleFinding, step=_whole, name=_text, kind=_text, inputs_finite=_flag, **_counts
)
_row = _record(
    StepRow,
    step=_whole,
    loss=_optional(_number),
    grad_norm=_optional(_number),
    learning_rate=_optional(_number),
    loss_scale=_optional(_number),
    skipped=_optional(_flag),
)
_about = _record(
    About,
    run=_text,
    rank=_whole,
    framework=_optional(_text),
    model=_optional(_text),
    versions=_by_name(_text),
)
_report = _record(
    Report,
    about=_about,
    source=_text,
    step=_whole,
    timestamp=_number,
    epoch=_optional(_number),
    loss=_optional(_number),
    grad_norm=_optional(_number),
    learning_rates=_by_name(_number),
    loss_scale=_optional(_number),
    skipped=_optional(_flag),
    steps=_many(_row),
    inputs=_optional(_inspection),
    labels=_many(_labels),
    parameters=_optional(_inspection),
    gradients=_optional(_inspection),
    first_layer=_optional(_text),
    first_module=_optional(_module),
    batch_indices=_optional(_many(_whole)),
    gaps=_many(_record(Gap, what=_text, why=_text)),
)
