# SPDX-License-Identifier: Apache-2.0
"""Metrics of a run that has many processes, at a time or one after the other."""

from __future__ import annotations

from training_exporter.catalog.labels import FORWARD_STAGES
from training_exporter.catalog.metric import Metric

_RANKS = "Ranks and restarts"
RESTARTS = Metric(
    "training_restarts_total",
    "counter",
    "Times that the run went on in another process: from a checkpoint, or as torchrun or Slurm "
    "tells.",
    section=_RANKS,
)
RUN_STEPS = Metric(
    "training_run_steps",
    "gauge",
    "Optimiser steps behind the present weights that were seen, those of earlier processes of the "
    "run included; goes back with the weights to a checkpoint.",
    section=_RANKS,
)
RUN_TOKENS = Metric(
    "training_run_tokens",
    "gauge",
    "Tokens behind the present weights on this rank, those of earlier processes of the run "
    "included; goes back with the weights to a checkpoint.",
    section=_RANKS,
)
RUN_SAMPLES = Metric(
    "training_run_samples",
    "gauge",
    "Rows behind the present weights on this rank, those of earlier processes of the run included; "
    "goes back with the weights to a checkpoint.",
    section=_RANKS,
)
FORWARD_PASSES = Metric(
    "training_forward_passes_total",
    "counter",
    "Forward passes of training that this rank has begun, which is when their data is there, and "
    "ended. While ranks wait for each other, the one that holds them up has the fewest. Of a "
    "Trainer only.",
    ("stage",),
    {"stage": FORWARD_STAGES},
    _RANKS,
)
FORWARD_SECONDS = Metric(
    "training_forward_seconds_total",
    "counter",
    "Time that this rank's device spent in forward passes of training: its own, before it waits "
    "for the gradients of others. Of a Trainer only.",
    section=_RANKS,
)
