# SPDX-License-Identifier: Apache-2.0
"""What a sink is: derive from `Sink`, and give an object of it as `sinks=[...]`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from training_exporter.layers.histograms import LayerHistograms
from training_exporter.snapshot import Anomaly
from training_exporter.summary.making import RunSummary


class RunInfo(NamedTuple):
    """Which run it is.

    Attributes:
        run: its name.
        rank: rank of this process in it.
        info: what else is known of it, the labels of `training_run_info`.
    """

    run: str
    rank: int
    info: Mapping[str, str]


class Point(NamedTuple):
    """What there is to plot of one step.

    Attributes:
        step: number of the step.
        timestamp: Unix time in seconds.
        values: numbers by name, such as `loss`; NaN and infinities are as they were, and what is
            not known is not in it.
    """

    step: int
    timestamp: float
    values: Mapping[str, float]


class SinkTrouble(Exception):  # noqa: N818 - it is the sink that has trouble, not its code
    """Raised by a sink that could not deliver something this time, and may the next time."""


class SinkClosed(Exception):  # noqa: N818 - as above
    """Raised by a sink that can deliver nothing any more; its text is logged, and no traceback."""


class Sink:
    """Somewhere else that a run is told of. A method that does nothing may be left out.

    All methods are called on one thread, which is the sink's own, so they may take their time: what
    comes meanwhile waits for them, and steps that find no room are dropped and counted in
    `training_exporter_sink_dropped_total`. Of what a method raises the first is logged and all are
    counted in `training_exporter_errors_total`; a sink that raises is switched off, unless it was
    SinkTrouble. It is of rank 0 alone.

    Attributes:
        name: what it is called in logs and as a label; each sink of an exporter has another.
        histogram_steps: optimiser steps from one call of `histograms` to the next; 0 for none. Of
            several sinks of an exporter the least counts for all that want any.
    """

    name: str = "sink"
    histogram_steps: int = 0

    def start(self, run: RunInfo) -> None:
        """The run has begun to step, or goes on after `finish`."""

    def steps(self, points: Sequence[Point]) -> None:
        """Steps were taken, as many as in about a second."""

    def anomaly(self, anomaly: Anomaly) -> None:
        """An anomaly began. Steps before it have come before."""

    def histograms(self, found: LayerHistograms) -> None:
        """Gradients and weights were looked at, as `histogram_steps` asked for. Steps after it may
        have come before."""

    def finish(self, summary: RunSummary) -> None:
        """The run has ended. It may end twice, as one that completed and then crashed all the same,
        and before it has begun. The end of the process waits for this, but no longer than some
        seconds."""
