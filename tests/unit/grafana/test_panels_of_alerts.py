# SPDX-License-Identifier: Apache-2.0
"""From an alert to the panel that shows it: docs/dashboards.md."""

from __future__ import annotations

import json
import re

from tests.alert_rules import rules_of
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "dashboards.md").read_text()
LINES = re.findall(r"^\| \[(\w+)\]\(runbooks\.md#(\w+)\) \| (.*) \|$", PAGE, re.MULTILINE)
LINK = re.compile(r"\[([^\]]+)\]\(http://localhost:3000/d/([\w-]+)\?viewPanel=panel-(\d+)\)")


def titles() -> dict[tuple[str, int], str]:
    """Return the titles of all panels by their dashboard and number."""
    found = {}
    for path in (ROOT / "grafana" / "dashboards").glob("*.json"):
        dashboard = json.loads(path.read_text())
        for panel in dashboard["panels"]:
            for one in (panel, *panel.get("panels", ())):
                found[dashboard["uid"], one["id"]] = one["title"]
    return found


def test_every_alert_has_its_panels() -> None:
    """In the order of the rules, each with its runbook."""
    alerts = [rule["alert"] for rule in rules_of("alerts.yml")]

    assert [alert for alert, _, _ in LINES] == alerts
    assert all(anchor == alert.lower() for alert, anchor, _ in LINES)


def test_links_lead_to_the_panels_that_they_name() -> None:
    """A panel that is renumbered or renamed would leave a runbook pointing at another."""
    links = [link for *_, cell in LINES for link in LINK.findall(cell)]

    assert len(links) >= len(LINES)
    assert {(uid, int(number)): title for title, uid, number in links}.items() <= titles().items()
