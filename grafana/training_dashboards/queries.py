# SPDX-License-Identifier: Apache-2.0
"""PromQL of the dashboards, put together from the catalogue's metrics.

Queries of Grafana see a run only while Prometheus has its series, so what a table or a number shows
of a run that has ended is the last value in the time that the dashboard shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from training_exporter import catalog
from training_exporter.catalog import Metric

PROCESS: Final = "job, instance, run, rank"
"""Labels that tell one process from another."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What a dashboard's variables choose.

    Attributes:
        variables: names of the variables, which are the labels that they are matched with. `=~`
            takes one value, several and all.
    """

    variables: tuple[str, ...]

    def of(self, metric: Metric, *matchers: str, part: str = "") -> str:
        """Return the selector of a metric, or of a histogram's `_bucket`, `_sum` or `_count`."""
        chosen = [f'{name}=~"${name}"' for name in self.variables]
        return f"{metric.name}{part}{{{', '.join([*chosen, *matchers])}}}"

    def rate(self, metric: Metric, *matchers: str, part: str = "") -> str:
        """Return how much a counter rises in a second."""
        return f"rate({self.of(metric, *matchers, part=part)}[$__rate_interval])"

    def increase(self, metric: Metric, *matchers: str) -> str:
        """Return how much a counter rose since the point before, or a little longer."""
        return f"increase({self.of(metric, *matchers)}[$__rate_interval])"

    def total(self, metric: Metric, *matchers: str) -> str:
        """Return how much a counter rose in the time shown; for queries of one point."""
        return f"increase({self.of(metric, *matchers)}[$__range])"

    def seen(self, metric: Metric, *matchers: str) -> str:
        """Return the last value in the time shown, of each process that had one."""
        return f"last_over_time({self.of(metric, *matchers)}[$__range])"

    def recent(self, metric: Metric, *matchers: str) -> str:
        """Return the last value since the point before, of processes that are gone by now too."""
        return f"last_over_time({self.of(metric, *matchers)}[$__rate_interval])"

    def latest(self, metric: Metric, *matchers: str) -> str:
        """Return what `seen` does, of the process that last was that rank of the run.

        A run that went on in another process has two that were seen, and the values of the first
        are history.
        """
        return f"({self.seen(metric, *matchers)} and on ({PROCESS}) {self._processes()})"

    def at_work(self, metric: Metric) -> str:
        """Return the metric of processes that have not ended; one that has may serve on a while."""
        live = self.of(catalog.RUN_STATE, _is(*LIVE_STATES))
        return f"({self.of(metric)} and on ({PROCESS}) {live} == 1)"

    def _processes(self) -> str:
        """Return one series for each rank: its latest process, by the last sign of progress.

        One that has none yet, as it has not begun to train, has at least its information, whose
        value of 1 is below any time.
        """
        signs = f"{self.seen(catalog.LAST_PROGRESS_TIMESTAMP)} or {self.seen(catalog.RUN_INFO)}"
        return f"topk by (run, rank) (1, {signs})"


RANKS: Final = Selection(("job", "run", "rank"))
"""Of dashboards that look into runs."""

RUNS: Final = Selection(("job", "run"))
"""Of dashboards that look at runs as a whole."""

LIVE_STATES: Final = tuple(s for s in catalog.RUN_STATES if s not in catalog.FINAL_STATES)

VANISHED: Final = "vanished"
"""Not a state of a run but of what is known of it: it was at work, and its page is gone."""

STATE_CODES: Final = {
    catalog.COMPLETED: 1,
    catalog.STOPPED: 2,
    catalog.STARTING: 3,
    catalog.RUNNING: 4,
    catalog.EVALUATING: 5,
    catalog.SAVING: 6,
    VANISHED: 7,
    catalog.CRASHED: 8,
}
"""Numbers for states, which a panel turns into words. Of several ranks the highest one is shown."""


def by(labels: str, aggregation: str, expression: str) -> str:
    """Return an aggregation: `avg by (run) (...)`."""
    return f"{aggregation} by ({labels}) ({expression})"


def any_of(expressions: Sequence[str]) -> str:
    """Return the union of some vectors."""
    return " or ".join(expressions)


def state_now(selection: Selection) -> str:
    """Return the code of each process's state while it is there."""
    return any_of(
        [
            f"{code} * ({selection.of(catalog.RUN_STATE, _is(state))} == 1)"
            for state, code in STATE_CODES.items()
            if state != VANISHED
        ]
    )


def last_state(selection: Selection) -> str:
    """Return the code of each rank's last state, `vanished` for one that was at work and is gone.

    Gone is who was not seen for a minute, so that a scrape may fail.
    """
    live = _is(*LIVE_STATES)
    at_work = f"{selection.latest(catalog.RUN_STATE, live)} == 1"
    present = f"last_over_time({selection.of(catalog.RUN_STATE)}[1m])"
    vanished = f"{STATE_CODES[VANISHED]} * ({at_work} unless on (run, rank) {present})"
    states = [
        f"{code} * ({selection.latest(catalog.RUN_STATE, _is(state))} == 1)"
        for state, code in STATE_CODES.items()
        if state != VANISHED
    ]
    return any_of([vanished, *states])


def _is(*states: str) -> str:
    return f'state="{states[0]}"' if len(states) == 1 else f'state=~"{"|".join(states)}"'
