# SPDX-License-Identifier: Apache-2.0
"""What a sink is: derive from `Sink`, and give an object of it as `sinks=[...]`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from training_exporter.layers.histograms import LayerHistograms
from training_exporter.signals import Evaluation
from training_exporter.snapshot import Anomaly
from training_exporter.status import ReportNote
from training_exporter.summary.making import RunSummary


class RunInfo(NamedTuple):
    """Which run it is.

    Attributes:
        run: its name.
        rank: rank of this process in it.
        info: what else is known of it, the labels of `training_run_info`.
        step: the first step that there is to tell, None if there is none yet.
    """

    run: str
    rank: int
    info: Mapping[str, str]
    step: int | None = None


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
    `training_exporter_sink_dropped_total`. What a method raises is counted in
    `training_exporter_errors_total`, and a sink that raises is switched off, as the log then says,
    unless it was SinkTrouble: that is logged the first time, and each time that an anomaly, a
    report or an end was lost by it. `start` is asked again then, with the next that there is to
    tell. It is of rank 0 alone.

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

    def evaluation(self, results: Evaluation) -> None:
        """An evaluation ended. Steps before it have come before, as far as their values had arrived
        from the device. One before the first step comes with that, one after `finish` never."""

    def report(self, note: ReportNote) -> None:
        """A report on a NaN was made, with its likely cause. It is made once the values of its step
        have arrived, and so may come some steps after its anomaly."""

    def histograms(self, found: LayerHistograms) -> None:
        """Gradients and weights were looked at, as `histogram_steps` asked for. Steps after it may
        have come before."""

    def finish(self, summary: RunSummary) -> None:
        """The run has ended. `start` has come before, even if the run ended before its first step.
        It may end twice, as one that completed and then crashed all the same, with no `start` in
        between. The end of the process waits for this, but no longer than some seconds."""
