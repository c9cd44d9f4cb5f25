# SPDX-License-Identifier: Apache-2.0
"""Every dashboard holds every rule, and every rule sees what it is there for."""

from __future__ import annotations

import copy
import re

import pytest

from tests.dashboards import RULES
from tests.dashboards.model import Json, load_all, texts
from tests.dashboards.mutations import MUTATIONS

DASHBOARDS = load_all()


def offences(name: str, dashboard: dict) -> list[str]:
    return list(RULES[name](dashboard))


def spoil(file: str, name: str) -> Json | None:
    """A dashboard with what a rule is about spoilt; None when it has no such panel."""
    spoilt = copy.deepcopy(DASHBOARDS[file])
    try:
        MUTATIONS[name](spoilt)
    except StopIteration:
        return None
    return spoilt


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("file", DASHBOARDS)
def test_rule(file: str, name: str) -> None:
    """A committed dashboard holds a rule of the lint."""
    assert not offences(name, DASHBOARDS[file])


@pytest.mark.parametrize("name", RULES)
def test_the_lint_catches_what_it_claims(name: str) -> None:
    """A dashboard that is spoilt in the way a rule is about breaks that rule."""
    spoilt = spoil("training-run.json", name) or spoil("training-fleet.json", name)
    assert spoilt is not None
    assert offences(name, spoilt)


def test_the_files_are_named_by_uid() -> None:
    """A file's name is the dashboard's uid, by which links know it; titles differ."""
    assert {f"{dashboard['uid']}.json" for dashboard in DASHBOARDS.values()} == set(DASHBOARDS)
    titles = {dashboard["title"] for dashboard in DASHBOARDS.values()}
    assert len(titles) == len(DASHBOARDS)


def test_links_lead_to_dashboards_that_there_are() -> None:
    """What links to /d/<uid> names one of ours, and so do the alerts."""
    known = {dashboard["uid"] for dashboard in DASHBOARDS.values()}
    linked = {
        found
        for dashboard in DASHBOARDS.values()
        for text in texts(dashboard)
        for found in re.findall(r"/d/([\w-]+)", text)
    }
    assert linked
    assert linked <= known
    assert "training-run" in known
