# SPDX-License-Identifier: Apache-2.0
"""Where else a run is told of: W&B, TensorBoard, a chat, or what a user makes of `Sink`."""

from training_exporter.sinks.sink import Point, RunInfo, Sink, SinkClosed, SinkTrouble

__all__ = ["Point", "RunInfo", "Sink", "SinkClosed", "SinkTrouble"]
