# SPDX-License-Identifier: Apache-2.0
"""Runs on top of each other: the curves of a run against its steps instead of the clock."""

from __future__ import annotations

from typing import Final

from training_dashboards.against import Field, against
from training_dashboards.build import Dashboard
from training_dashboards.charts import Axis
from training_dashboards.frame import NUMBER, TOKENS_PER_SECOND, About, Row
from training_dashboards.queries import RANKS as S
from training_dashboards.queries import by
from training_exporter import catalog

_BY_RUN: Final = ("run",)
_STEP: Final = Field(by("run", "max", S.of(catalog.STEP)), "Step")
_NO_STEPS: Final = "No step in this time: choose a time in which the runs were at work"

LOSS = against(
    About(
        1,
        "Train loss by step",
        "The moving average of the loss, its mean over the ranks, against the step: the lower "
        "curve learns faster from as many steps.",
        [catalog.LOSS_EMA, catalog.STEP],
        _NO_STEPS,
        width=24,
        height=12,
    ),
    _STEP,
    Field(by("run", "avg", S.of(catalog.LOSS_EMA)), "Loss average"),
    _BY_RUN,
    Axis(NUMBER),
)

RAW_LOSS = against(
    About(
        2,
        "Loss of each step",
        "The loss as it is, its mean over the ranks, against the step; a NaN is not drawn.",
        [catalog.TRAINING_LOSS, catalog.STEP],
        _NO_STEPS,
        height=10,
    ),
    _STEP,
    Field(by("run", "avg", S.of(catalog.TRAINING_LOSS)), "Loss"),
    _BY_RUN,
    Axis(NUMBER),
)

_EVALUATED: Final = S.of(catalog.EVAL_LOSS)
EVAL_LOSS = against(
    About(
        3,
        "Evaluation loss by step",
        "The loss on data held out against the step; it stays where it was until the next "
        "evaluation.",
        [catalog.EVAL_LOSS, catalog.STEP],
        "No evaluation in this time",
        height=10,
    ),
    Field(
        f"{by('run, dataset', 'group', _EVALUATED)} * on (run) group_left () {_STEP.query}",
        "Step",
    ),
    Field(by("run, dataset", "avg", _EVALUATED), "Evaluation loss"),
    ("run", "dataset"),
    Axis(NUMBER),
)

GRADIENT_NORM = against(
    About(
        4,
        "Gradient norm by step",
        "The moving average of the gradient norm against the step, on a logarithmic scale.",
        [catalog.GRAD_NORM_EMA, catalog.STEP],
        _NO_STEPS,
        height=10,
    ),
    _STEP,
    Field(by("run", "avg", S.of(catalog.GRAD_NORM_EMA)), "Gradient norm average"),
    _BY_RUN,
    Axis(NUMBER, log=10),
)

LEARNING_RATE = against(
    About(
        5,
        "Learning rate by step",
        "The highest learning rate of any parameter group against the step.",
        [catalog.LEARNING_RATE, catalog.STEP],
        _NO_STEPS,
        height=10,
    ),
    _STEP,
    Field(by("run", "max", S.of(catalog.LEARNING_RATE)), "Learning rate"),
    _BY_RUN,
    Axis(NUMBER),
)

TOKENS_PER_SECOND_BY_STEP = against(
    About(
        6,
        "Tokens per second by step",
        "Tokens per second of all ranks together against the step.",
        [catalog.TOKENS_PER_SECOND, catalog.STEP],
        _NO_STEPS,
        height=10,
    ),
    _STEP,
    Field(by("run", "sum", S.of(catalog.TOKENS_PER_SECOND)), "Tokens per second"),
    _BY_RUN,
    Axis(TOKENS_PER_SECOND),
)

LOSS_BY_TOKENS = against(
    About(
        7,
        "Train loss by tokens",
        "The moving average of the loss against the tokens behind the weights: fair to runs whose "
        "batches differ in size.",
        [catalog.LOSS_EMA, catalog.RUN_TOKENS],
        "No tokens counted in this time",
        height=10,
    ),
    Field(by("run", "sum", S.of(catalog.RUN_TOKENS)), "Tokens"),
    Field(by("run", "avg", S.of(catalog.LOSS_EMA)), "Loss average"),
    _BY_RUN,
    Axis(NUMBER),
)

LOSS_BY_STEP: Final = Dashboard(
    uid="training-loss-by-step",
    title="Loss by step",
    description="Several runs on top of each other, against the step instead of the clock.",
    selection=S,
    rows=[
        Row(0, "", [LOSS, RAW_LOSS, EVAL_LOSS], closed=False),
        Row(100, "Optimiser", [GRADIENT_NORM, LEARNING_RATE], closed=False),
        Row(200, "Tokens", [LOSS_BY_TOKENS, TOKENS_PER_SECOND_BY_STEP]),
    ],
)
