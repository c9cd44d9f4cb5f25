# SPDX-License-Identifier: Apache-2.0
"""Does it learn: the losses and the learning rate."""

from __future__ import annotations

from typing import Final

from training_dashboards import palette
from training_dashboards.charts import Curve, curves
from training_dashboards.frame import About, Row
from training_dashboards.queries import RANKS as S
from training_dashboards.queries import by
from training_exporter import catalog

TRAIN_LOSS = curves(
    About(
        101,
        "Train loss",
        "The loss of each step, thin, and its moving average, thick, as means over the ranks; a "
        "gap is a NaN.",
        [catalog.TRAINING_LOSS, catalog.LOSS_EMA],
        "No loss in this time",
        width=12,
        height=9,
    ),
    Curve(
        by("run", "avg", S.of(catalog.TRAINING_LOSS)),
        "{{run}} loss",
        palette.TRAIN_LOSS_RAW,
        width=1,
    ),
    Curve(
        by("run", "avg", S.of(catalog.LOSS_EMA)),
        "{{run}} average",
        palette.TRAIN_LOSS,
        width=3,
    ),
)

EVAL_LOSS = curves(
    About(
        102,
        "Evaluation loss and train loss",
        "The loss on data held out beside the train loss: a gap that widens is overfitting.",
        [catalog.EVAL_LOSS, catalog.LOSS_EMA],
        "No evaluation in this time",
        width=6,
        height=9,
    ),
    Curve(
        by("run, dataset", "avg", S.of(catalog.EVAL_LOSS)),
        "{{run}} {{dataset}}",
        palette.EVAL_LOSS,
        width=3,
    ),
    Curve(
        by("run", "avg", S.of(catalog.LOSS_EMA)),
        "{{run}} train average",
        palette.TRAIN_LOSS,
        width=2,
    ),
)

LEARNING_RATE = curves(
    About(
        103,
        "Learning rate by group",
        "The learning rate of each parameter group; look here first when the loss jumps.",
        [catalog.LEARNING_RATE],
        "No learning rate in this time",
        width=6,
        height=9,
    ),
    Curve(
        by("run, group", "max", S.of(catalog.LEARNING_RATE)),
        "{{run}} group {{group}}",
        palette.LEARNING_RATE,
    ),
)

CORE: Final = Row(100, "Core", [TRAIN_LOSS, EVAL_LOSS, LEARNING_RATE], closed=False)
