# SPDX-License-Identifier: Apache-2.0
"""What a Grafana of one's own is given: data sources, and where dashboards lie."""

from __future__ import annotations

from typing import Any

import yaml

from tests.conftest import ROOT

PROVISIONING = ROOT / "grafana" / "provisioning"


def load(path: str) -> Any:
    return yaml.safe_load((PROVISIONING / path).read_text())


def sources() -> dict[str, Any]:
    return {one["uid"]: one for one in load("datasources/training.yaml")["datasources"]}


def test_rates_look_back_by_the_scrape_interval() -> None:
    """`$__rate_interval` is four times what Grafana believes the scrape interval to be."""
    scraped = yaml.safe_load((ROOT / "prometheus" / "prometheus.yml").read_text())

    told = sources()["prometheus"]["jsonData"]["timeInterval"]
    assert told == scraped["global"]["scrape_interval"]


def test_prometheus_is_the_default_and_says_what_it_is() -> None:
    """Dashboards take the default source; type and version let variables be looked up by label."""
    prometheus = sources()["prometheus"]

    assert prometheus["isDefault"]
    assert {"prometheusType", "prometheusVersion"} <= prometheus["jsonData"].keys()


def test_alerts_find_their_alertmanager() -> None:
    """The rules' source names the other one, which speaks Prometheus' dialect and not Mimir's."""
    named = sources()["prometheus"]["jsonData"]["alertmanagerUid"]

    assert sources()[named]["type"] == "alertmanager"
    assert sources()[named]["jsonData"]["implementation"] == "prometheus"


def test_dashboards_lie_outside_of_grafanas_volume() -> None:
    """A folder mounted into `/var/lib/grafana` would be hidden by the volume there."""
    (provider,) = load("dashboards/training.yaml")["providers"]

    assert provider["options"]["path"] == "/etc/grafana/dashboards"
    assert not provider["allowUiUpdates"]


def test_no_variable_is_left_for_grafana_to_expand() -> None:
    """In provisioning files Grafana takes `$NAME` for an environment variable."""
    texts = [path.read_text() for path in PROVISIONING.rglob("*.yaml")]

    assert texts
    assert not any("$" in text for text in texts)
