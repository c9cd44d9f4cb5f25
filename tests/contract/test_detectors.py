# SPDX-License-Identifier: Apache-2.0
"""What every detector of every profile keeps, whatever it judges."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import fields, replace
from functools import cache
from inspect import signature
from math import cos, pi
from random import Random
from typing import Any

import pytest

from training_exporter.catalog import (
    ANOMALY_KINDS,
    DIVERGENCE,
    EVAL_GAP,
    LEARNING_RATE_ANOMALY,
    LOSS_OSCILLATION,
    LOSS_PLATEAU,
    NON_FINITE,
    RESTART,
    RESUME_JUMP,
)
from training_exporter.detectors import (
    HEALTHY,
    PROFILES,
    WARMING_UP,
    Detector,
    EvaluationDetector,
    Finding,
    Quiet,
    Verdict,
    build_detectors,
    robust_detectors,
    textbook_detectors,
)
from training_exporter.signals import Evaluation, StepSignals

FIELDS = tuple(field.name for field in fields(StepSignals))

NAN, INF = float("nan"), float("inf")
CLASSES = sorted(
    {type(detector) for profile in PROFILES for detector in build_detectors(profile)},
    key=lambda cls: cls.__name__,
)
OPTIONS = [(cls, name) for cls in CLASSES for name in signature(cls).parameters]
BREAKABLE = [
    cls
    for cls in CLASSES
    if cls.kind not in {NON_FINITE, RESTART, EVAL_GAP, LOSS_PLATEAU, LOSS_OSCILLATION, RESUME_JUMP}
]
"""What `broken_run` breaks; the tests of the others show that they fire."""
every_detector = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)


@cache
def healthy_run(seed: int = 0, steps: int = 2000, first: int = 1) -> tuple[StepSignals, ...]:
    """A run as it should be: warm-up and cosine decay, noise everywhere, a slow step here and
    there, sequences of varying length, memory read on every tenth step."""
    random, run = Random(seed), []
    for step in range(first, first + steps):
        rate = 1e-3 * min(1.0, step / 100) * (1.1 + cos(pi * step / (first + steps)))
        tokens = float(random.randrange(2000, 8000))
        signals = StepSignals(
            step,
            1e9 + step,
            loss=(1.0 + 9.0 / (1.0 + step / 50.0) ** 0.5) * random.gauss(1.0, 0.03),
            grad_norm=random.lognormvariate(-1.0, 0.4),
            clip_threshold=1.0,
            learning_rates={"decay": rate, "no_decay": rate / 2},
            loss_scale=65536.0,
            skipped=False,
            epoch=step / 1000,
            max_steps=first + steps,
            tokens=tokens,
            samples=16.0,
            step_seconds=tokens / 8000 * random.gauss(1.0, 0.05) + 5.0 * (step % 100 == 0),
            data_wait_seconds=0.001,
            memory_allocated_bytes=8e9 * random.uniform(1.0, 1.2) if step % 10 == 0 else None,
        )
        run.append(signals)
    return tuple(run)


@cache
def broken_run(first: int) -> tuple[StepSignals, ...]:
    """A run on which all goes wrong at once, so that every detector has something to find."""
    run = []
    for signals in healthy_run(7, 400, first):
        step = signals.step - first
        broken = replace(
            signals,
            loss=50.0 * (1 + step % 5),
            grad_norm=500.0 if step < 200 else 1e-9,
            learning_rates={"decay": 9.0, "no_decay": 0.0},
            step_seconds=60.0,
            memory_allocated_bytes=8e9 * (1 + step / 100),
        )
        run.append(broken)
    return tuple(run)


def observe(detector: Detector, run: Iterable[StepSignals]) -> list[Verdict]:
    """All verdicts over a run with an evaluation after every hundredth step."""
    verdicts = []
    for signals in run:
        verdicts.append(detector.observe(signals))
        if signals.step % 100 == 0 and isinstance(detector, EvaluationDetector):
            evaluation = Evaluation(signals.step, 0.0, "eval", signals.loss)
            verdicts.append(detector.observe_evaluation(evaluation))
    return verdicts


def through_json(state: dict[str, Any]) -> dict[str, Any]:
    """What a restart reads back; strict, as not every reader of JSON knows NaN."""
    text = json.dumps(state, allow_nan=False)
    restored: dict[str, Any] = json.loads(text)
    return restored


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_has_each_kind_once(profile: str) -> None:
    """Robust has them all; a divergence has no textbook formula."""
    kinds = [detector.kind for detector in build_detectors(profile)]
    assert len(kinds) == len(set(kinds))
    missing = {DIVERGENCE} if profile == "textbook" else set()
    assert set(kinds) == set(ANOMALY_KINDS) - missing


@every_detector
def test_it_is_a_detector(cls: type[Detector]) -> None:
    """It constructs by default, and every option is a keyword with a default."""
    assert isinstance(cls(), Detector)
    for parameter in signature(cls).parameters.values():
        assert parameter.kind is parameter.KEYWORD_ONLY
        assert parameter.default is not parameter.empty


@pytest.mark.parametrize(("cls", "name"), OPTIONS, ids=str)
@pytest.mark.parametrize("nonsense", [NAN, INF, -1, "2", None, True], ids=repr)
def test_nonsense_is_refused(cls: type[Detector], name: str, nonsense: Any) -> None:
    """With the option's name and its range in the message."""
    with pytest.raises(ValueError, match=rf"{name} must be a .*number (above|at least) .*got"):
        cls(**{name: nonsense})


@pytest.mark.parametrize("build", [robust_detectors, textbook_detectors])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_pike": {}}, "this profile has no detector of 'loss_pike'; it has .*loss_spike"),
        (
            {"loss_spike": {"gama": 2}},
            "unknown option 'gama' of loss_spike; valid are .*m",
        ),
        ({"restart": {"jump": 0}}, "restart: jump must be a number above 1, got 0"),
        ({"non_finite": {"x": 1}}, "unknown option 'x' of non_finite; valid are none"),
    ],
)
def test_wrong_options_name_the_right_ones(build: Any, options: Any, message: str) -> None:
    """Kinds, options and values are checked where the list is built."""
    with pytest.raises(ValueError, match=message):
        build(options)


def test_an_unknown_profile_names_the_known_ones() -> None:
    """So does a kind that the profile does not have."""
    with pytest.raises(ValueError, match="unknown profile 'robus'; valid are robust, textbook"):
        build_detectors("robus")
    with pytest.raises(ValueError, match="this profile has no detector of 'divergence'"):
        textbook_detectors({"divergence": {}})


def test_options_reach_the_detector() -> None:
    """A lower gamma finds what the default lets pass."""
    for gamma, kind in ((1.2, Finding), (2.0, Quiet)):
        detectors = build_detectors("textbook", {"loss_spike": {"gamma": gamma}})
        spike = next(detector for detector in detectors if detector.kind == "loss_spike")
        verdicts = [spike.observe(StepSignals(1, 0.0, loss=loss)) for loss in (1.0, 1.5)]
        assert isinstance(verdicts[-1], kind)


@pytest.mark.parametrize("seed", range(4))
@every_detector
def test_a_healthy_run_is_silent(cls: type[Detector], seed: int) -> None:
    """It warms up, then is healthy to the end, by the very constants."""
    verdicts = observe(cls(), healthy_run(seed))
    assert all(verdict is WARMING_UP or verdict is HEALTHY for verdict in verdicts)
    assert verdicts[-1] is HEALTHY
    ready = verdicts.index(HEALTHY)
    assert all(verdict is HEALTHY for verdict in verdicts[ready:])


@pytest.mark.parametrize("cls", BREAKABLE, ids=lambda cls: cls.__name__)
def test_a_broken_run_is_found(cls: type[Detector]) -> None:
    """It speaks when all goes wrong, in finite numbers that JSON and a metric can hold."""
    detector = cls()
    observe(detector, healthy_run())
    found = [v for v in observe(detector, broken_run(2001)) if isinstance(v, Finding)]
    assert found
    assert all(v.value - v.value == 0.0 and v.threshold - v.threshold == 0.0 for v in found)


@pytest.mark.parametrize("bad", [None, NAN, INF, -INF], ids=repr)
@every_detector
def test_unknown_and_non_finite_signals_are_no_evidence(cls: type[Detector], bad: Any) -> None:
    """A step of which nothing finite is known leaves the state alone, before and after warming up,
    and gets the last quiet verdict. Only `non_finite` judges it, and rates are judged as such."""
    unknown = {
        name: bad
        for name in FIELDS
        if name not in {"step", "timestamp", "learning_rates", "skipped"}
    }
    detector = cls()
    for quiet, steps in ((WARMING_UP, 1), (HEALTHY, 2000)):
        before = detector.state_dict()
        verdict = detector.observe(StepSignals(steps, 0.0, **unknown))
        if cls.kind == "restart":
            continue
        if cls.kind == NON_FINITE and bad is not None:
            assert isinstance(verdict, Finding)
        else:
            assert verdict is quiet or cls.kind == NON_FINITE
        assert detector.state_dict() == before
        observe(detector, healthy_run())


@pytest.mark.parametrize("bad", [None, NAN, INF, -INF, 0.0, 1e300, 5e-324], ids=repr)
@every_detector
def test_each_field_may_be_anything(cls: type[Detector], bad: Any) -> None:
    """No field that is missing, zero, huge or non-finite raises or leaves it stuck."""
    detector = cls()
    observe(detector, healthy_run())
    step = 2001
    for field in FIELDS[2:]:
        value = ({"decay": bad} if bad is not None else {}) if field == "learning_rates" else bad
        for signals in healthy_run(1, 3, step):
            verdict = detector.observe(replace(signals, **{field: value}))
            assert isinstance(verdict, Finding | Quiet)
            step += 1
    assert observe(detector, healthy_run(2, 1500, step))[-1] is HEALTHY


@every_detector
def test_state_survives_a_restart(cls: type[Detector]) -> None:
    """At any point of a run a fresh detector with the saved state goes on as the old one."""
    detector = cls()
    step = 1
    for length in (1, 2, 6, 100, 401, 503):
        observe(detector, healthy_run(step, length, step))
        step += length
        copy = cls()
        copy.load_state_dict(through_json(detector.state_dict()))
        old = cls()
        old.load_state_dict(detector.state_dict())
        for make in (lambda at: healthy_run(3, 300, at), broken_run):
            assert observe(copy, make(step)) == observe(old, make(step))
        assert copy.state_dict() == old.state_dict()


@every_detector
def test_loading_shares_nothing(cls: type[Detector]) -> None:
    """A saved state stays as it was when the detector it came from or went to goes on."""
    detector, copy = cls(), cls()
    observe(detector, healthy_run(0, 700))
    state = detector.state_dict()
    text = json.dumps(state)
    copy.load_state_dict(state)
    observe(detector, healthy_run(1, 700, 701))
    observe(copy, healthy_run(2, 700, 701))
    assert json.dumps(state) == text


@every_detector
def test_partial_and_older_state_is_tolerated(cls: type[Detector]) -> None:
    """Keys that are missing start afresh, unknown ones are ignored."""
    detector = cls()
    observe(detector, healthy_run(0, 700))
    state = detector.state_dict()
    for name in state:
        for partial in ({name: state[name]}, {k: v for k, v in state.items() if k != name}):
            detector.load_state_dict({**partial, "of_another_version": [1, 2, 3]})
            observe(detector, healthy_run(1, 300, 701))


@every_detector
def test_empty_state_is_a_fresh_detector(cls: type[Detector]) -> None:
    """After a restart everything starts afresh, derived limits included."""
    detector = cls()
    observe(detector, healthy_run(0, 700))
    observe(detector, broken_run(701))
    detector.load_state_dict({})
    assert detector.state_dict() == cls().state_dict()
    assert observe(detector, healthy_run(4)) == observe(cls(), healthy_run(4))


def test_state_is_bounded() -> None:
    """A hundred thousand steps need no more room than twenty thousand."""
    detectors = [cls() for cls in CLASSES]
    sizes = []
    for first, steps in ((1, 20_000), (20_001, 80_000)):
        random = Random(first)
        for step in range(first, first + steps):
            signals = StepSignals(
                step, 0.0, 1.0 + random.random(), random.random(), 1.0, {"a": 1e-3}, tokens=1e3,
                step_seconds=random.random(), memory_allocated_bytes=random.random(),
            )  # fmt: skip
            for detector in detectors:
                detector.observe(signals)
        sizes.append({type(d).__name__: len(json.dumps(d.state_dict())) for d in detectors})
    early, late = sizes
    assert all(late[name] < 1.5 * early[name] + 200 for name in early)
    assert max(late.values()) < 10_000


def test_rates_that_are_not_numbers_are_found_by_their_own_detector() -> None:
    """Non-finite rates are the learning-rate detector's to judge, not `non_finite`'s."""
    signals = StepSignals(1, 0.0, loss=1.0, grad_norm=1.0, learning_rates={"a": NAN})
    found = {d.kind for d in robust_detectors() if isinstance(d.observe(signals), Finding)}
    assert found == {LEARNING_RATE_ANOMALY}
