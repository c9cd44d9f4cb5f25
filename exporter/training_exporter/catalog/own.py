# SPDX-License-Identifier: Apache-2.0
"""Metrics of the exporter itself."""

from __future__ import annotations

from training_exporter.catalog.labels import ERROR_PLACES, PHASES, RESUME_FAILURES
from training_exporter.catalog.metric import Metric

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
    "training thread (observe), drawing the page on the server's thread (scrape), asking the GPU "
    "driver on a thread of its own (gpu; processor time, since the driver may keep it waiting).",
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
DROPPED_LAYER_PASSES = Metric(
    "training_exporter_dropped_layer_passes_total",
    "counter",
    "Passes over the layers that were left out because the device was behind, or a CUDA graph was "
    "being captured.",
    section=_EXPORTER,
)
DROPPED_PHASES = Metric(
    "training_exporter_dropped_phases_total",
    "counter",
    "Steps without times of their phases because no event was free, or a CUDA graph was being "
    "captured.",
    section=_EXPORTER,
)
RESUME_FAILED = Metric(
    "training_exporter_resume_failures_total",
    "counter",
    "Times that a resumed run could not take over averages and detectors, by reason.",
    ("reason",),
    {"reason": tuple(RESUME_FAILURES)},
    _EXPORTER,
)
SINK_DROPPED = Metric(
    "training_exporter_sink_dropped_total",
    "counter",
    "Steps and anomalies that a sink was not told, being slower than the training, by sink.",
    ("sink",),
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
