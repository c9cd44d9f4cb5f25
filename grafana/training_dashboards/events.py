# SPDX-License-Identifier: Apache-2.0
"""Marks on the axis of time, made of metrics: what happened to a run, and when.

Events whose time is known to the exporter stand at that time, however the scrapes fell.
Evaluations and checkpoints are known as time that was spent, and a start as the first time that a
run was seen, so they are regions, as wide as the window looked at.
"""

from __future__ import annotations

from typing import Final

from grafana_foundation_sdk.builders import dashboard as dashboards
from grafana_foundation_sdk.builders import prometheus
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import dashboard as model

from training_dashboards import palette
from training_dashboards.queries import PROCESS, Selection, by
from training_dashboards.variables import PROMETHEUS
from training_exporter import catalog

STEP: Final = "30s"
"""Events that are less than this apart are one region."""

_MILLISECONDS: Final = "1000"


def events(selection: Selection) -> list[Builder[model.AnnotationQuery]]:
    """Return anomalies, jumps, restarts, evaluations, checkpoints, starts and ends of runs."""
    return [
        _at_its_time(
            "Anomalies",
            palette.BAD,
            _last_anomaly(selection, f'kind!="{catalog.RESTART}"'),
            title="{{run}}: {{kind}}",
        ),
        _at_its_time(
            "Jumps",
            palette.WARNING,
            _last_anomaly(selection, f'kind="{catalog.RESTART}"'),
            title="{{run}}: another step",
        ),
        _annotation("Restarts", palette.WARNING, _restart(selection), "{{run}}: restart"),
        _pause("Evaluations", palette.EVAL_LOSS, selection, catalog.EVALUATION, "evaluation"),
        _pause("Checkpoints", palette.QUIET, selection, catalog.CHECKPOINT, "checkpoint"),
        _annotation("Starts", palette.AT_WORK, _start(selection), "{{run}}: start"),
        _at_its_time("Ends", palette.DONE, _end(selection), title="{{run}}: {{state}}"),
    ]


def _last_anomaly(selection: Selection, kinds: str) -> str:
    return by("run, kind", "max", selection.recent(catalog.ANOMALY_LAST_TIMESTAMP, kinds))


def _start(selection: Selection) -> str:
    """Return runs that are seen now, and were not in the hour before."""
    info = catalog.RUN_INFO
    now = by("run", "max", selection.of(info))
    before = by("run", "max", f"last_over_time({selection.of(info)}[1h] offset $__rate_interval)")
    return f"{now} unless on (run) {before}"


def _restart(selection: Selection) -> str:
    """Return runs that went on in another process: more restarts than in the hour before.

    The first page of the new process counts its own restart already, so nothing increases.
    """
    restarts = selection.of(catalog.RESTARTS)
    now = by("run", "max", f"max_over_time({restarts}[$__rate_interval])")
    before = by("run", "max", f"max_over_time({restarts}[1h] offset $__rate_interval)")
    return f"{now} > {before}"


def _end(selection: Selection) -> str:
    """Return the last progress of processes in a final state."""
    ended = selection.recent(
        catalog.RUN_STATE, f'state=~"{"|".join(sorted(catalog.FINAL_STATES))}"'
    )
    progress = selection.recent(catalog.LAST_PROGRESS_TIMESTAMP)
    return by("run, state", "max", f"({ended} == 1) * on ({PROCESS}) group_left () {progress}")


def _at_its_time(name: str, colour: str, seconds: str, title: str) -> dashboards.AnnotationQuery:
    """Return marks at the Unix times that the query gives."""
    query = f"{seconds} * {_MILLISECONDS}"
    return _annotation(name, colour, query, title).use_value_for_time(True)


def _pause(
    name: str, colour: str, selection: Selection, activity: str, title: str
) -> dashboards.AnnotationQuery:
    spent = selection.increase(catalog.PAUSE, f'activity="{activity}"')
    query = f"{by('run', 'max', spent)} > 0"
    return _annotation(name, colour, query, f"{{{{run}}}}: {title}")


def _annotation(name: str, colour: str, query: str, title: str) -> dashboards.AnnotationQuery:
    target = prometheus.Dataquery().expr(query).interval(STEP).ref_id("Anno").range()
    return (
        dashboards.AnnotationQuery()
        .name(name)
        .enable(True)
        .hide(False)
        .icon_color(colour)
        .datasource(PROMETHEUS)
        .target(target)
        .title_format(title)
        .tag_keys("run")
    )
