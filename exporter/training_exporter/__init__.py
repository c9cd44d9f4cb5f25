# SPDX-License-Identifier: Apache-2.0
"""Prometheus metrics and anomaly detection from inside a training run.

Nothing optional is imported here: integrations are imported by their path, for example
`training_exporter.integrations.huggingface`.
"""

from training_exporter._version import __version__
from training_exporter.config import ExporterConfig
from training_exporter.exporter import TrainingExporter
from training_exporter.signals import StepSignals

__all__ = ["ExporterConfig", "StepSignals", "TrainingExporter", "__version__"]
