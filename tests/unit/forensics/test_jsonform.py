# SPDX-License-Identifier: Apache-2.0
"""Reports as JSON and back."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from math import inf, nan
from typing import Any

import pytest

from tests.unit.forensics.events import bad, report, signals
from training_exporter.forensics.jsonform import ReportError, from_json, to_json
from training_exporter.forensics.report import (
    Findings,
    Inspection,
    Labels,
    ModuleFinding,
    Report,
)

FULL = replace(
    report(
        signals(0, loss=inf, grad_norm=-inf, learning_rates={"0": nan}),
        findings=Findings(
            bad(), (Labels("labels", 9, 1, 0, 8, 9),), bad(103), bad(100), (5, 7), ()
        ),
        loss_scale=1024.0,
        skipped=False,
        epoch=0.25,
    ),
    first_layer="L03.attn.q",
    first_module=ModuleFinding(101, "h.3.attn", "Attention", (2, 8), "float16", 3, 1, True),
)


def changed(**values: Any) -> str:
    return json.dumps({**json.loads(to_json(FULL)), **values})


def without(name: str) -> str:
    values = json.loads(to_json(FULL))
    del values[name]
    return json.dumps(values)


def test_the_scene_has_every_field() -> None:
    """Else the round trip would prove less than it says."""
    empty = [one.name for one in fields(Report) if getattr(FULL, one.name) in (None, (), {})]
    assert empty == []


def test_a_report_survives_the_round_trip() -> None:
    """All of it, NaN and both infinities included."""
    assert repr(from_json(to_json(FULL))) == repr(FULL)  # by text, since NaN equals nothing


def test_strict_parsers_read_it() -> None:
    """NaN and Infinity are no JSON, which many parsers refuse."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    values = json.loads(to_json(FULL), parse_constant=refuse)
    assert values["schema_version"] == 1
    assert values["loss"] == "NaN"
    assert [values["steps"][-2][name] for name in ("loss", "grad_norm")] == [
        "Infinity",
        "-Infinity",
    ]
    assert values["gradients"]["worst"][0]["nan"] == 12


def test_fields_of_a_later_release_are_ignored() -> None:
    """At the top and inside."""
    about = {**json.loads(to_json(FULL))["about"], "cluster": "c1"}
    assert repr(from_json(changed(weather="fine", about=about))) == repr(FULL)


def test_what_may_be_unknown_may_be_missing() -> None:
    """A field that has a default takes it."""
    assert from_json(without("first_module")).first_module is None
    assert from_json(without("labels")).labels == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "this is not JSON: "),
        ("{", "this is not JSON: "),
        ("[" * 100_000, "this is not JSON: "),
        ("[]", "this is no report of training-exporter: it has no schema_version"),
        ('{"loss": 1}', "this is no report of training-exporter: it has no schema_version"),
        (changed(schema_version=2), "the report has schema version 2, and this release reads 1"),
        (changed(schema_version="x"), "the report has schema version 'x', and this release reads"),
        (without("step"), "the report cannot be read: step is missing"),
        (changed(about={"run": "a"}), "the report cannot be read: about: rank is missing"),
        (changed(step="7"), "the report cannot be read: step: expected a whole number, got '7'"),
        (changed(step=True), "the report cannot be read: step: expected a whole number, got True"),
        (changed(loss="many"), "the report cannot be read: loss: expected a number, got 'many'"),
        (changed(loss=True), "the report cannot be read: loss: expected a number, got True"),
        (changed(loss=10**400), "the report cannot be read: loss: expected a number that a float"),
        (changed(source=None), "the report cannot be read: source: expected a text, got None"),
        (changed(steps=5), "the report cannot be read: steps: expected a list, got 5"),
        (changed(steps=[{}]), "the report cannot be read: steps: step is missing"),
        (changed(inputs=[]), "the report cannot be read: inputs: expected an object, got []"),
        (changed(skipped="x" * 99), "the report cannot be read: skipped: expected true or false"),
    ],
)
def test_what_is_no_report_is_one_clear_line(text: str, message: str) -> None:
    """Which names the field, and what it should have been."""
    with pytest.raises(ReportError) as caught:
        from_json(text)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_a_report_is_small() -> None:
    """At its bounds: 50 tensors of each kind, 50 steps, 64 label tensors."""
    many = Inspection(1, 500, 500, bad().worst * 50)
    labels = (Labels("micro-batch 64, labels", 10**6, 10**6, 0, 10**6, 10**6),) * 64
    largest = report(
        *[signals(0)] * 50, findings=Findings(many, labels, many, many, tuple(range(1024)))
    )
    assert len(to_json(largest)) < 100_000
