# SPDX-License-Identifier: Apache-2.0
"""The manifests, read as a cluster reads them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from training_exporter.assets import FORMATS, shipped_files

SHIPPED = shipped_files()
TEXTS = FORMATS["kubernetes"](SHIPPED)
MANIFESTS: dict[str, dict[str, Any]] = {name: yaml.safe_load(text) for name, text in TEXTS.items()}
LARGEST_CONFIG_MAP = 1024 * 1024

# Fields and patterns of the operator's definitions, as of its release 0.82:
# https://github.com/prometheus-operator/prometheus-operator/tree/main/example/prometheus-operator-crd
DURATION = re.compile(r"(0|(\d+y)?(\d+w)?(\d+d)?(\d+h)?(\d+m)?(\d+s)?(\d+ms)?)")
GROUP = {
    "interval",
    "labels",
    "limit",
    "name",
    "partial_response_strategy",
    "query_offset",
    "rules",
}
RULE = {"alert", "annotations", "expr", "for", "keep_firing_for", "labels", "record"}
DURATIONS = {"interval", "query_offset", "for", "keep_firing_for"}
ENDPOINT = {"port", "portNumber", "path", "scheme", "params", "interval", "scrapeTimeout"}
ENDPOINT |= {"honorLabels", "honorTimestamps", "relabelings", "metricRelabelings", "filterRunning"}
POD_MONITOR = {"namespaceSelector", "selector", "podMetricsEndpoints", "podTargetLabels"}


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [manifest for manifest in MANIFESTS.values() if manifest["kind"] == kind]


def source(folder: str) -> dict[str, str]:
    return {Path(p).name: text for p, text in SHIPPED.items() if p.startswith(folder)}


@pytest.mark.parametrize("name", [name for name in MANIFESTS if name != "kustomization.yaml"])
def test_every_manifest_says_what_it_is(name: str) -> None:
    """With a name that Kubernetes allows, and labels that are texts."""
    manifest = MANIFESTS[name]

    assert set(manifest) - {"spec", "data", "stringData"} == {"apiVersion", "kind", "metadata"}
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", manifest["metadata"]["name"])
    assert manifest["metadata"]["labels"]["app.kubernetes.io/part-of"] == "training-exporter"
    assert all(isinstance(v, str) for v in manifest["metadata"]["labels"].values())


def test_names_are_unique_within_a_kind() -> None:
    """Or one would take the place of another."""
    names = [(m["kind"], m["metadata"]["name"]) for m in MANIFESTS.values() if "metadata" in m]

    assert len(set(names)) == len(names) == len(MANIFESTS) - 1


def test_rules_are_the_shipped_ones() -> None:
    """All groups of all files, to the letter."""
    rules = [rule["spec"] for rule in of_kind("PrometheusRule")]

    assert rules == [yaml.safe_load(text) for text in source("alertmanager/rules/").values()]


def test_the_operator_knows_every_field_of_the_rules() -> None:
    """And refuses none of their durations."""
    for spec in (rule["spec"] for rule in of_kind("PrometheusRule")):
        assert set(spec) == {"groups"}
        assert len({group["name"] for group in spec["groups"]}) == len(spec["groups"])
        for group in spec["groups"]:
            assert set(group) <= GROUP
            assert all(set(rule) <= RULE for rule in group["rules"])
            for part in (group, *group["rules"]):
                assert all(DURATION.fullmatch(part[key]) for key in DURATIONS & set(part))
                assert all(isinstance(v, str) for v in part.get("labels", {}).values())


def test_the_operator_knows_every_field_of_the_pod_monitor() -> None:
    """A pod monitor with an unknown one is refused."""
    (monitor,) = of_kind("PodMonitor")

    assert set(monitor["spec"]) <= POD_MONITOR
    assert all(set(endpoint) <= ENDPOINT for endpoint in monitor["spec"]["podMetricsEndpoints"])


def test_each_dashboard_has_a_config_map_that_grafana_looks_for() -> None:
    """With the very dashboard, and small enough for Kubernetes."""
    maps = of_kind("ConfigMap")
    found = {name: json.loads(text) for each in maps for name, text in each["data"].items()}

    assert found == {n: json.loads(text) for n, text in source("grafana/dashboards/").items()}
    assert {each["metadata"]["labels"]["grafana_dashboard"] for each in maps} == {"1"}
    assert max(map(len, TEXTS.values())) < LARGEST_CONFIG_MAP


def test_alertmanager_finds_its_templates_and_secrets_where_the_operator_mounts_them() -> None:
    """All else is the shipped configuration."""
    (secret,) = of_kind("Secret")
    keys = dict(secret["stringData"])
    text = keys.pop("alertmanager.yaml")
    shipped = yaml.safe_load(SHIPPED["alertmanager/alertmanager.yml"])
    config = yaml.safe_load(text)

    assert {k: v.strip() for k, v in keys.items()} == {
        name: template.strip() for name, template in source("alertmanager/templates/").items()
    }
    assert config.pop("templates") == ["/etc/alertmanager/config/*.tmpl"]
    del shipped["templates"]
    assert set(re.findall(r"_file: (\S+)/\w+$", text, re.MULTILINE)) == {
        "/etc/alertmanager/secrets/training-exporter-webhooks"
    }
    assert config["route"] == shipped["route"]
    assert config["inhibit_rules"] == shipped["inhibit_rules"]
    assert [r["name"] for r in config["receivers"]] == [r["name"] for r in shipped["receivers"]]


def test_kustomize_is_told_of_every_manifest() -> None:
    """`kubectl apply -k` applies what is written, and nothing else."""
    assert MANIFESTS["kustomization.yaml"]["resources"] == sorted(
        set(MANIFESTS) - {"kustomization.yaml"}
    )
