# SPDX-License-Identifier: Apache-2.0
"""Metrics of the run itself: what its steps, its evaluations and its detectors say."""

from __future__ import annotations

from training_exporter.catalog.labels import (
    ANOMALY_KINDS,
    COMPUTE_PHASES,
    NON_FINITE_SOURCES,
    PAUSES,
    RUN_STATES,
    WATCHED_SIGNALS,
)
from training_exporter.catalog.metric import Metric

# Run
_RUN = "Run"
RUN_INFO = Metric(
    "training_run_info",
    "gauge",
    "1, with everything about the run that does not change on its labels.",
    ("framework", "model", "profile", "world_size", "local_rank", "node", "host"),
    section=_RUN,
)
RUN_STATE = Metric(
    "training_state",
    "gauge",
    "1 for the state the run is in, 0 for the others.",
    ("state",),
    {"state": RUN_STATES},
    _RUN,
)
STEP = Metric("training_step", "gauge", "Last finished optimiser step.", section=_RUN)
EPOCH = Metric("training_epoch", "gauge", "Position in the data, in epochs.", section=_RUN)
MAX_STEPS = Metric(
    "training_max_steps", "gauge", "Step at which the run is planned to end.", section=_RUN
)
ETA = Metric(
    "training_eta_seconds",
    "gauge",
    "Time to the planned last step at the present pace, with the evaluations, checkpoints and "
    "logging that are due until then, once one of each was seen.",
    section=_RUN,
)
LAST_STEP_TIMESTAMP = Metric(
    "training_last_step_timestamp_seconds",
    "gauge",
    "Unix time at which the last step ended.",
    section=_RUN,
)
LAST_PROGRESS_TIMESTAMP = Metric(
    "training_last_progress_timestamp_seconds",
    "gauge",
    "Unix time at which the last step, evaluation or checkpoint ended, or the training began.",
    section=_RUN,
)

# Loss and evaluation
_LOSS = "Loss and evaluation"
TRAINING_LOSS = Metric(
    "training_loss",
    "gauge",
    "Loss of the last optimiser step on this rank; NaN and Inf as they are.",
    section=_LOSS,
)
LOSS_EMA = Metric(
    "training_loss_ema",
    "gauge",
    "Bias-corrected exponential moving average of the finite losses.",
    section=_LOSS,
)
EVAL_LOSS = Metric(
    "training_eval_loss",
    "gauge",
    "Loss of the last evaluation.",
    ("dataset",),
    section=_LOSS,
)
EVAL_METRIC = Metric(
    "training_eval_metric",
    "gauge",
    "Any other numeric result of the last evaluation.",
    ("dataset", "metric"),
    section=_LOSS,
)
LOGGED_VALUE = Metric(
    "training_logged_value",
    "gauge",
    "Any other number that the trainer logged (rewards, entropy, ...), as it logged it.",
    ("name",),
    section=_LOSS,
)
NAN_FILTER = Metric(
    "training_logging_nan_inf_filter",
    "gauge",
    "1 when the trainer's own log replaces NaN and Inf losses, so that it hides what is seen here.",
    section=_LOSS,
)

# Gradients and optimiser
_GRADIENTS = "Gradients and optimiser"
GRADIENT_NORM = Metric(
    "training_grad_norm",
    "gauge",
    "Global L2 norm of the gradients before clipping in the last step.",
    section=_GRADIENTS,
)
GRAD_NORM_EMA = Metric(
    "training_grad_norm_ema",
    "gauge",
    "Bias-corrected exponential moving average of the finite gradient norms.",
    section=_GRADIENTS,
)
GRAD_CLIP_THRESHOLD = Metric(
    "training_grad_clip_threshold",
    "gauge",
    "Norm above which gradients are clipped.",
    section=_GRADIENTS,
)
GRAD_CLIP_RATIO = Metric(
    "training_grad_clip_ratio",
    "gauge",
    "Share of recent steps whose gradients were clipped.",
    section=_GRADIENTS,
)
LEARNING_RATE = Metric(
    "training_learning_rate",
    "gauge",
    "Learning rate that the last step used, by parameter group.",
    ("group",),
    section=_GRADIENTS,
)
LOSS_SCALE = Metric(
    "training_loss_scale",
    "gauge",
    "Scale of the mixed-precision gradient scaler.",
    section=_GRADIENTS,
)
CLIPPED_STEPS = Metric(
    "training_clipped_steps_total",
    "counter",
    "Steps whose gradients were clipped.",
    section=_GRADIENTS,
)
SKIPPED_STEPS = Metric(
    "training_skipped_steps_total",
    "counter",
    "Steps in which the optimiser left the weights alone.",
    section=_GRADIENTS,
)
NON_FINITE_STEPS = Metric(
    "training_non_finite_steps_total",
    "counter",
    "Steps on which the signal was NaN or infinite.",
    ("signal",),
    {"signal": WATCHED_SIGNALS},
    _GRADIENTS,
)
NON_FINITE_STREAK = Metric(
    "training_non_finite_streak_steps",
    "gauge",
    "Steps in a row, up to the last one, on which the signal was NaN or infinite.",
    ("signal",),
    {"signal": WATCHED_SIGNALS},
    _GRADIENTS,
)
LAST_NON_FINITE_TIMESTAMP = Metric(
    "training_last_non_finite_timestamp_seconds",
    "gauge",
    "Unix time of the last step on which the signal was NaN or infinite; absent when there was "
    "none.",
    ("signal",),
    {"signal": WATCHED_SIGNALS},
    _GRADIENTS,
)
NON_FINITE_SOURCE = Metric(
    "training_non_finite_source",
    "gauge",
    "1 for where the last report says that the NaN or Inf came from, 0 for the others; absent "
    "before the first report.",
    ("source",),
    {"source": tuple(NON_FINITE_SOURCES)},
    _GRADIENTS,
)
NON_FINITE_REPORTS = Metric(
    "training_non_finite_reports_total",
    "counter",
    "Reports made on NaN and Inf, of which `training-exporter explain` tells the likely cause.",
    section=_GRADIENTS,
)

# Throughput
_THROUGHPUT = "Throughput"
STEPS = Metric("training_steps_total", "counter", "Optimiser steps seen.", section=_THROUGHPUT)
TOKENS = Metric(
    "training_tokens_total",
    "counter",
    "Tokens this rank trained on, padding apart where a mask tells it.",
    section=_THROUGHPUT,
)
SAMPLES = Metric(
    "training_samples_total", "counter", "Rows this rank trained on.", section=_THROUGHPUT
)
POSITIONS = Metric(
    "training_positions_total",
    "counter",
    "Token positions this rank's device computed, padding included, where a mask tells it apart.",
    section=_THROUGHPUT,
)
PADDING_RATIO = Metric(
    "training_padding_ratio",
    "gauge",
    "Recent share of padding among the positions of this rank.",
    section=_THROUGHPUT,
)
TOKENS_PER_SECOND = Metric(
    "training_tokens_per_second",
    "gauge",
    "Recent tokens per second of this rank, waiting for data included; evaluation, saving and "
    "logging apart.",
    section=_THROUGHPUT,
)
SAMPLES_PER_SECOND = Metric(
    "training_samples_per_second",
    "gauge",
    "Recent rows per second of this rank, counted like the tokens.",
    section=_THROUGHPUT,
)
MODEL_FLOPS = Metric(
    "training_model_flops_total",
    "counter",
    "Floating-point operations that the model needed for this rank's batches, forward and backward "
    "pass; what is computed twice to save memory counts once.",
    section=_THROUGHPUT,
)
MODEL_FLOPS_PER_SECOND = Metric(
    "training_model_flops_per_second",
    "gauge",
    "Recent model FLOP/s of this rank, over the same time as the tokens.",
    section=_THROUGHPUT,
)
MFU = Metric(
    "training_mfu_ratio",
    "gauge",
    "Model FLOPs utilisation: recent model FLOP/s over the dense peak of this rank's GPU at the "
    "precision of the run; absent when either is unknown.",
    section=_THROUGHPUT,
)
STEP_DURATION = Metric(
    "training_step_duration_seconds",
    "histogram",
    "Wall time of an optimiser step; waiting for data, evaluation, saving and logging apart.",
    section=_THROUGHPUT,
)
COMPUTE = Metric(
    "training_compute_seconds_total",
    "counter",
    "Time that the device spent in a part of the steps: on a GPU that of its stream, on a CPU wall "
    "time. The optimiser's part has clipping in it.",
    ("phase",),
    {"phase": COMPUTE_PHASES},
    _THROUGHPUT,
)
DATA_WAIT = Metric(
    "training_data_wait_seconds_total",
    "counter",
    "Time spent waiting for data.",
    section=_THROUGHPUT,
)
PAUSE = Metric(
    "training_pause_seconds_total",
    "counter",
    "Time spent in what is neither a step nor waiting for data.",
    ("activity",),
    {"activity": PAUSES},
    _THROUGHPUT,
)

# Anomalies
_ANOMALIES = "Anomalies"
_BY_KIND = {"kind": tuple(ANOMALY_KINDS)}
ANOMALIES = Metric(
    "training_anomalies_total",
    "counter",
    "Anomalies that began. One that goes on over many steps counts once.",
    ("kind",),
    _BY_KIND,
    _ANOMALIES,
)
ANOMALY_ACTIVE = Metric(
    "training_anomaly_active",
    "gauge",
    "1 while an anomaly goes on: from its first step until ten steps without it.",
    ("kind",),
    _BY_KIND,
    _ANOMALIES,
)
ANOMALY_LAST_STEP = Metric(
    "training_anomaly_last_step",
    "gauge",
    "Last step that was anomalous; absent when there was none.",
    ("kind",),
    _BY_KIND,
    _ANOMALIES,
)
ANOMALY_LAST_TIMESTAMP = Metric(
    "training_anomaly_last_timestamp_seconds",
    "gauge",
    "Unix time of the last step that was anomalous; absent when there was none.",
    ("kind",),
    _BY_KIND,
    _ANOMALIES,
)
ANOMALY_LAST_VALUE = Metric(
    "training_anomaly_last_value",
    "gauge",
    "What was measured at the last anomalous step.",
    ("kind",),
    _BY_KIND,
    _ANOMALIES,
)
ANOMALY_LAST_THRESHOLD = Metric(
    "training_anomaly_last_threshold",
    "gauge",
    "The threshold which that measurement crossed.",
    ("kind",),
    _BY_KIND,
    _ANOMALIES,
)
DETECTOR_READY = Metric(
    "training_detector_ready",
    "gauge",
    "1 when the detector has seen enough to judge, 0 while it warms up.",
    ("kind",),
    _BY_KIND,
    _ANOMALIES,
)
