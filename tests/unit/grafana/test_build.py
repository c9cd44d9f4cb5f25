# SPDX-License-Identifier: Apache-2.0
"""From dashboards in Python to the JSON that is committed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.alert_rules import rules_of
from tests.conftest import ROOT
from training_dashboards.build import Dashboard, write
from training_dashboards.charts import number
from training_dashboards.every import DASHBOARDS
from training_dashboards.frame import About, Row
from training_dashboards.layout import COLUMNS, arrange
from training_dashboards.mappings import STATES
from training_dashboards.queries import RANKS, RUNS, STATE_CODES, VANISHED, last_state, state_now
from training_exporter import catalog

COMMITTED = ROOT / "grafana" / "dashboards"
RECORDED = {rule["record"]: rule["expr"] for rule in rules_of("recording.yml")}
HELPERS = {catalog.LAST_PROGRESS_TIMESTAMP.name, catalog.RUN_INFO.name}
"""Metrics by which queries find the latest process of a rank, which panels are not about."""

EACH = pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: dashboard.uid)


def panel(number_of_it: int, width: int, height: int = 4) -> Any:
    about = About(number_of_it, "title", "text", [catalog.STEP], "nothing", width, height)
    return number(about, ("vector(1)", "name"))


def drawn(dashboard: Dashboard) -> list[dict[str, Any]]:
    panels = json.loads(dashboard.json())["panels"]
    return [
        one for outer in panels for one in (outer["panels"] if outer["type"] == "row" else [outer])
    ]


def written_out(query: str) -> str:
    """Return a query with what recorded series are made of in the place of their names."""
    while names := [name for name in RECORDED if name in query]:
        longest = max(names, key=len)
        query = query.replace(longest, RECORDED[longest])
    return query


def test_a_fresh_build_is_what_is_committed(tmp_path: Path) -> None:
    """Nobody edits the JSON, and nobody forgets `make dashboards`."""
    write(DASHBOARDS, tmp_path)

    fresh = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert fresh == {path.name: path.read_text() for path in COMMITTED.glob("*.json")}


@EACH
def test_text_is_tidy(dashboard: Dashboard) -> None:
    """Keys are sorted, there is a last line's end, and nothing that JSON does not know."""
    text = dashboard.json()

    assert (
        text
        == json.dumps(json.loads(text, parse_constant=pytest.fail), indent=2, sort_keys=True) + "\n"
    )


@EACH
def test_what_the_sdk_puts_in_unasked_is_taken_out(dashboard: Dashboard) -> None:
    """Links and switches of annotations stay where a reader sees them."""
    text = dashboard.json()

    assert '"placement": "in' not in text
    assert '"auto_count"' not in text


@EACH
def test_panels_name_the_metrics_of_their_queries(dashboard: Dashboard) -> None:
    """A description names all metrics that its panel asks for, and no other."""
    for one in drawn(dashboard):
        named = set(re.findall(r"`(\w+)`", one["description"]))
        asked = set()
        for target in one["targets"]:
            for token in re.findall(r"\btraining_\w+", written_out(target["expr"])):
                stem = re.sub(r"_(bucket|sum|count)$", "", token)
                asked.add(token if token in catalog.CATALOG else stem)
        assert named <= asked, one["title"]
        assert asked - named <= HELPERS, one["title"]


def test_ids_are_given_once() -> None:
    """Two panels with an id would make a link lead to either."""
    with pytest.raises(ValueError, match=r"used twice: \[7\]"):
        arrange([Row(0, "", [panel(7, 12), panel(7, 12)], closed=False)])


def test_a_panel_that_does_not_fit_begins_a_line() -> None:
    """A line is as high as its highest panel, and none reaches over the edge."""
    row = Row(0, "", [panel(1, 6, 4), panel(2, 6, 9), panel(3, COLUMNS, 5)], closed=False)

    places = [one.grid_pos for one in arrange([row])]

    assert [(p.x, p.y, p.w) for p in places if p] == [(0, 0, 6), (6, 0, 6), (0, 9, COLUMNS)]


def test_a_closed_row_holds_its_panels() -> None:
    """So that Grafana asks for them when it is opened, and the next row follows at once."""
    placed = arrange([Row(9, "Closed", [panel(1, 12)]), Row(10, "Next", [panel(2, 12)])])

    assert [(one.id_val, one.grid_pos.y) for one in placed if one.grid_pos] == [(9, 0), (10, 1)]
    assert [[p.id_val for p in getattr(one, "panels", [])] for one in placed] == [[1], [2]]


def test_every_state_has_a_number_and_a_word() -> None:
    """No state of a run is a bare number on a panel, and vanished is among them."""
    (mapping,) = STATES

    assert set(STATE_CODES) == {*catalog.RUN_STATES, VANISHED}
    assert set(mapping.options) == {str(code) for code in STATE_CODES.values()}


def test_states_that_need_help_outrank_others() -> None:
    """Of several ranks the highest number is shown: one that crashed shows, whatever others do."""
    assert max(STATE_CODES, key=STATE_CODES.__getitem__) == catalog.CRASHED
    assert all(STATE_CODES[VANISHED] > STATE_CODES[state] for state in catalog.RUN_STATES[:-2])


def test_queries_ask_for_every_state() -> None:
    """Each state is asked for by name, now and as the last one."""
    for query in (state_now(RANKS), last_state(RANKS)):
        assert all(f'state="{state}"' in query for state in catalog.RUN_STATES)


def test_selections_match_their_variables() -> None:
    """With `=~`, so that one value, several and all work alike."""
    assert RUNS.of(catalog.STEP) == 'training_step{job=~"$job", run=~"$run"}'
    assert RANKS.of(catalog.STEP_DURATION, 'x="y"', part="_sum") == (
        'training_step_duration_seconds_sum{job=~"$job", run=~"$run", rank=~"$rank", x="y"}'
    )


@EACH
def test_an_empty_cell_of_a_table_is_a_dash(dashboard: Dashboard) -> None:
    """The panel's words for no data would stand in each cell of a run that never had a loss."""
    for one in drawn(dashboard):
        if one["type"] != "table":
            continue
        (organised,) = [t for t in one["transformations"] if t["id"] == "organize"]
        columns = set(organised["options"]["renameByName"].values())
        dashed = {
            override["matcher"]["options"]
            for override in one["fieldConfig"]["overrides"]
            if {"id": "noValue", "value": "-"} in override["properties"]
        }
        assert columns - dashed <= {"Run", "Rank", "GPU"}


@EACH
def test_a_gap_at_the_end_of_a_curve_is_no_missing_run(dashboard: Dashboard) -> None:
    """Grafana draws NaN as a gap; the legend would say of it what a panel without data says."""
    for one in drawn(dashboard):
        if one["type"] == "timeseries":
            words = {
                mapping["options"]["match"]: mapping["options"]["result"]["text"]
                for mapping in one["fieldConfig"]["defaults"]["mappings"]
                if mapping["type"] == "special"
            }
            assert words["null"] == "no value", one["title"]


@EACH
def test_counts_over_the_time_shown_are_whole(dashboard: Dashboard) -> None:
    """Prometheus extrapolates an increase, and 1.02 layers are none."""
    for one in drawn(dashboard):
        for target in one["targets"]:
            query = target["expr"]
            assert ("increase(" in query and "[$__range]" in query) <= ("round(" in query), query


@EACH
def test_a_rank_that_stands_still_is_no_nan(dashboard: Dashboard) -> None:
    """Bars and means over ranks are divided by rates above 0 only, since 0 / 0 would spoil them."""
    for one in drawn(dashboard):
        for target in one["targets"]:
            if one["type"] == "bargauge" or "by (run) ((rate(" in target["expr"]:
                assert "/ rate(" not in target["expr"], one["title"]


def test_what_has_ended_is_not_at_work() -> None:
    """A run that has ended serves its last numbers for a while, which are no numbers of now."""
    asked = RUNS.at_work(catalog.TOKENS_PER_SECOND)

    assert all(state not in asked for state in catalog.FINAL_STATES)
    assert f'state=~"{catalog.STARTING}|' in asked
