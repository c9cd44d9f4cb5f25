# SPDX-License-Identifier: Apache-2.0
"""Every metric and every label value that something matches on, written down once.

Code, dashboards and docs import these objects. YAML can only spell names, so a test compares what
it spells with this file. To rename a metric: edit it here, note it in the changelog, and keep the
old name for one minor version.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

COMMON_LABELS: Final = ("run", "rank")
"""Labels of every series: the run, stable over restarts, and the rank of the process in it."""

# Kinds of anomaly, the values of the label `kind`.
LOSS_SPIKE: Final = "loss_spike"
DIVERGENCE: Final = "divergence"
LOSS_PLATEAU: Final = "loss_plateau"
LOSS_OSCILLATION: Final = "loss_oscillation"
GRADIENT_EXPLOSION: Final = "gradient_explosion"
GRADIENT_VANISHING: Final = "gradient_vanishing"
NON_FINITE: Final = "non_finite"
CLIPPING_EXCESS: Final = "clipping_excess"
EVAL_GAP: Final = "eval_gap"
LEARNING_RATE_ANOMALY: Final = "learning_rate_anomaly"
MEMORY_GROWTH: Final = "memory_growth"
THROUGHPUT_DROP: Final = "throughput_drop"
RESTART: Final = "restart"
ANOMALY_KINDS: Final[Mapping[str, str]] = {
    LOSS_SPIKE: "the loss is suddenly far above its recent level",
    DIVERGENCE: "the loss stays above its level or keeps rising",
    LOSS_PLATEAU: "the loss has stopped changing",
    LOSS_OSCILLATION: "the loss swings around its trend",
    GRADIENT_EXPLOSION: "the gradient norm is far above its usual level",
    GRADIENT_VANISHING: "the gradient norm has shrunk to nothing",
    NON_FINITE: "the loss or the gradient norm is NaN or infinite",
    CLIPPING_EXCESS: "most steps are clipped",
    EVAL_GAP: "the evaluation loss rises while the training loss falls",
    LEARNING_RATE_ANOMALY: "the learning rate has left its schedule",
    MEMORY_GROWTH: "the memory of the accelerator creeps up",
    THROUGHPUT_DROP: "steps have become much slower",
    RESTART: "the step number went back or jumped",
}

STARTING: Final = "starting"
RUNNING: Final = "running"
EVALUATING: Final = "evaluating"
SAVING: Final = "saving"
COMPLETED: Final = "completed"
CRASHED: Final = "crashed"
STOPPED: Final = "stopped"
RUN_STATES: Final = (STARTING, RUNNING, EVALUATING, SAVING, COMPLETED, CRASHED, STOPPED)
FINAL_STATES: Final = frozenset({COMPLETED, CRASHED, STOPPED})

LOSS: Final = "loss"
GRAD_NORM: Final = "grad_norm"
WATCHED_SIGNALS: Final = (LOSS, GRAD_NORM)

EVALUATION: Final = "evaluation"
CHECKPOINT: Final = "saving"
LOGGING: Final = "logging"
PAUSES: Final = (EVALUATION, CHECKPOINT, LOGGING)

STEP_PHASE: Final = "step"
OBSERVE_PHASE: Final = "observe"
SCRAPE_PHASE: Final = "scrape"
PHASES: Final = (STEP_PHASE, OBSERVE_PHASE, SCRAPE_PHASE)

STEP_ERROR: Final = "step"
OBSERVE_ERROR: Final = "observe"
EVALUATION_ERROR: Final = "evaluation"
LOG_ERROR: Final = "log"
LIFECYCLE_ERROR: Final = "lifecycle"
COLLECTOR_ERROR: Final = "collector"
WEB_ERROR: Final = "web"
ERROR_PLACES: Final = (
    STEP_ERROR,
    OBSERVE_ERROR,
    EVALUATION_ERROR,
    LOG_ERROR,
    LIFECYCLE_ERROR,
    COLLECTOR_ERROR,
    WEB_ERROR,
)

STEP_DURATION_BUCKETS: Final = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 150.0, 600.0,
)  # fmt: skip

UNIT_SUFFIXES: Final = (
    "seconds", "bytes", "ratio", "watts", "celsius", "hertz", "joules",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric family.

    Attributes:
        name: the family's full name, a counter's `_total` included.
        kind: its Prometheus type.
        help: one sentence, as shown on the page.
        labels: its labels beside the common ones, in order.
        values: for a label whose values are known beforehand, those values.
        section: heading under which the documentation lists it.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    values: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    section: str = ""

    @property
    def unit(self) -> str:
        """The base unit that the name ends in, or an empty string."""
        stem = self.name.removesuffix("_total")
        return next((unit for unit in UNIT_SUFFIXES if stem.endswith(f"_{unit}")), "")


# Run
_RUN = "Run"
RUN_INFO = Metric(
    "training_run_info",
    "gauge",
    "1, with everything about the run that does not change on its labels.",
    ("framework", "model", "profile", "world_size", "host"),
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
    "Time to the planned last step at the present pace, evaluation and saving apart.",
    section=_RUN,
)
LAST_STEP_TIMESTAMP = Metric(
    "training_last_step_timestamp_seconds",
    "gauge",
    "Unix time at which the last step ended.",
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
STEP_DURATION = Metric(
    "training_step_duration_seconds",
    "histogram",
    "Wall time of an optimiser step; waiting for data, evaluation, saving and logging apart.",
    section=_THROUGHPUT,
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

# The exporter itself
_EXPORTER = "The exporter itself"
BUILD_INFO = Metric(
    "training_exporter_build_info",
    "gauge",
    "1, with the versions of the exporter and of what it runs in on its labels.",
    ("version", "python_version"),
    section=_EXPORTER,
)
ERRORS = Metric(
    "training_exporter_errors_total",
    "counter",
    "Errors of the exporter that were kept away from the training, by where they happened.",
    ("where",),
    {"where": ERROR_PLACES},
    _EXPORTER,
)
OVERHEAD = Metric(
    "training_exporter_overhead_seconds_total",
    "counter",
    "Time the exporter took: hooks and device rows on the training thread (step), detectors on the "
    "training thread (observe), drawing the page on the server's thread (scrape).",
    ("phase",),
    {"phase": PHASES},
    _EXPORTER,
)
DROPPED_OBSERVATIONS = Metric(
    "training_exporter_dropped_observations_total",
    "counter",
    "Steps that went unseen because no device row was free.",
    section=_EXPORTER,
)
DROPPED_SERIES = Metric(
    "training_exporter_dropped_series_total",
    "counter",
    "Logged or evaluated values that were not exported because the cap was reached.",
    section=_EXPORTER,
)
COLLECTOR_SUCCESS = Metric(
    "training_exporter_collector_success",
    "gauge",
    "1 when the collector's last run succeeded, 0 when it failed.",
    ("collector",),
    section=_EXPORTER,
)
COLLECTOR_DURATION = Metric(
    "training_exporter_collector_duration_seconds",
    "gauge",
    "Time the collector's last run took.",
    ("collector",),
    section=_EXPORTER,
)

CATALOG: Final[Mapping[str, Metric]] = {
    metric.name: metric for metric in tuple(globals().values()) if isinstance(metric, Metric)
}
"""Every metric of this package by name, in the order in which it is documented."""
