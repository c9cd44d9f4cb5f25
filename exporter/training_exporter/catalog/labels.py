# SPDX-License-Identifier: Apache-2.0
"""Label names, and every label value that something matches on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

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
RESUME_JUMP: Final = "resume_jump"
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
    RESUME_JUMP: "the loss after a resume is far above where it was before",
}

RUNBOOKS: Final = (
    "https://github.com/training-exporter/training-exporter/blob/main/docs/runbooks.md"
)
_ALERTS: Final = {NON_FINITE: "TrainingLossNaN", RESTART: "TrainingRestarted"}
"""Alerts that are not called as their kind is."""


def runbook(kind: str) -> str | None:
    """Where is written what to do about a kind of anomaly; None for one that is not ours."""
    if kind not in ANOMALY_KINDS:
        return None
    alert = _ALERTS.get(kind) or "Training" + kind.title().replace("_", "")
    return f"{RUNBOOKS}#{alert.lower()}"


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

SOURCE_INPUTS: Final = "inputs"
SOURCE_PARAMETERS: Final = "parameters"
SOURCE_LOSS_SCALE: Final = "loss_scale"
SOURCE_LOSS: Final = "loss"
SOURCE_GRADIENTS: Final = "gradients"
NON_FINITE_SOURCES: Final[Mapping[str, str]] = {
    SOURCE_INPUTS: "the batch held NaN or Inf already",
    SOURCE_PARAMETERS: "the weights held NaN or Inf before the step began",
    SOURCE_LOSS_SCALE: "the gradients overflowed under a loss scale, the loss did not",
    SOURCE_LOSS: (
        "the loss became non-finite in the forward pass, and nothing before it is known to be"
    ),
    SOURCE_GRADIENTS: "the loss was finite, its gradients were not",
}
"""Where the NaN of a step came from, the values of the label `source`; see docs/forensics.md."""

EVALUATION: Final = "evaluation"
CHECKPOINT: Final = "saving"
LOGGING: Final = "logging"
PAUSES: Final = (EVALUATION, CHECKPOINT, LOGGING)

FORWARD_BACKWARD: Final = "forward_backward"
OPTIMIZER: Final = "optimizer"
COMPUTE_PHASES: Final = (FORWARD_BACKWARD, OPTIMIZER)

BEGUN: Final = "begun"
ENDED: Final = "ended"
FORWARD_STAGES: Final = (BEGUN, ENDED)

STEP_PHASE: Final = "step"
OBSERVE_PHASE: Final = "observe"
SCRAPE_PHASE: Final = "scrape"
GPU_PHASE: Final = "gpu"
PHASES: Final = (STEP_PHASE, OBSERVE_PHASE, SCRAPE_PHASE, GPU_PHASE)

STEP_ERROR: Final = "step"
OBSERVE_ERROR: Final = "observe"
EVALUATION_ERROR: Final = "evaluation"
LOG_ERROR: Final = "log"
LIFECYCLE_ERROR: Final = "lifecycle"
COLLECTOR_ERROR: Final = "collector"
WEB_ERROR: Final = "web"
GPU_ERROR: Final = "gpu"
SINK_ERROR: Final = "sink"
ERROR_PLACES: Final = (
    STEP_ERROR,
    OBSERVE_ERROR,
    EVALUATION_ERROR,
    LOG_ERROR,
    LIFECYCLE_ERROR,
    COLLECTOR_ERROR,
    WEB_ERROR,
    GPU_ERROR,
    SINK_ERROR,
)

STEP_DURATION_BUCKETS: Final = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 150.0, 600.0,
)  # fmt: skip

# GPUs
THROTTLE_REASONS: Final = (
    "gpu_idle", "applications_clocks", "sw_power_cap", "hw_slowdown", "sync_boost",
    "sw_thermal", "hw_thermal", "hw_power_brake", "display_clocks",
)  # fmt: skip
"""Why a GPU's clocks are lower than they could be, as NVML tells reasons apart."""

CORRECTED: Final = "corrected"
UNCORRECTED: Final = "uncorrected"
ECC_ERROR_TYPES: Final = (CORRECTED, UNCORRECTED)

OTHER: Final = "other"
XIDS: Final = (
    "8", "13", "31", "32", "38", "43", "45", "48", "61", "62", "63", "64", "68", "69", "74", "79",
    "92", "94", "95", "109", "119", "120", OTHER,
)  # fmt: skip
"""The driver's error codes that are counted each; https://docs.nvidia.com/deploy/xid-errors/"""

SENT: Final = "sent"
RECEIVED: Final = "received"
DIRECTIONS: Final = (SENT, RECEIVED)

ACTIVE: Final = "active"
INACTIVE: Final = "inactive"
LINK_STATES: Final = (ACTIVE, INACTIVE)

LIBRARY_MISSING: Final = "library_missing"
DRIVER_NOT_LOADED: Final = "driver_not_loaded"
NO_PERMISSION: Final = "no_permission"
GPU_LOST: Final = "gpu_lost"
DRIVER_STALLED: Final = "driver_stalled"
GPU_FAILURES: Final = (
    LIBRARY_MISSING, DRIVER_NOT_LOADED, NO_PERMISSION, GPU_LOST, DRIVER_STALLED, OTHER,
)  # fmt: skip
"""Why GPUs could not be read; a sensor that a GPU does not have is no failure."""

# Restarts
RESUME_MISSING: Final = "missing"
RESUME_UNREADABLE: Final = "unreadable"
RESUME_FOREIGN: Final = "foreign"
RESUME_WORLD_SIZE: Final = "world_size"
RESUME_FAILURES: Final[Mapping[str, str]] = {
    RESUME_MISSING: "the checkpoint was made without this exporter",
    RESUME_UNREADABLE: "the state beside the checkpoint is damaged, or of another version",
    RESUME_FOREIGN: "the state beside the checkpoint is of another run or step",
    RESUME_WORLD_SIZE: "the state beside the checkpoint is of another number of ranks",
}
"""Why a resumed run had to begin with averages and detectors as new."""
