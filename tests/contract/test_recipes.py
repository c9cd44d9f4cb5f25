# SPDX-License-Identifier: Apache-2.0
"""The recipes for Slurm and Kubernetes, as far as that can be held without a cluster."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT
from training_exporter import ExporterConfig
from training_exporter.config import DEFAULT_PORT, ENV_PREFIX

RECIPES = ROOT / "examples"
KUBERNETES = RECIPES / "kubernetes"
SCRIPTS = sorted(RECIPES.rglob("*.sbatch"))
TEXTS = [
    *SCRIPTS,
    *RECIPES.rglob("*.y*ml"),
    ROOT / "docs" / "ranks.md",
    ROOT / "prometheus/prometheus.yml",
]


def loaded(name: str) -> Any:
    return yaml.safe_load((KUBERNETES / name).read_text())


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_valid(script: Path) -> None:
    """Bash can read them, and Slurm their options: it stops at the first line that is a command."""
    text = script.read_text()

    subprocess.run(["bash", "-n", script], check=True, timeout=10)
    assert "#SBATCH" in text
    assert "#SBATCH" not in text[text.index("set -euo pipefail") :]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_variables_are_settings(path: Path) -> None:
    """A renamed setting takes its mentions along."""
    named = set(re.findall(rf"{ENV_PREFIX}([A-Z_]+)", path.read_text()))

    assert named <= {name.upper() for name in ExporterConfig.__dataclass_fields__}


def test_each_process_of_a_pod_has_a_port_that_is_scraped() -> None:
    """By the operator and by a Prometheus without it; 10400 and up, as local ranks have them."""
    job = loaded("pytorchjob.yaml")["spec"]
    monitor = loaded("podmonitor.yaml")["spec"]
    (scrape,) = loaded("prometheus.yml")["scrape_configs"]
    scraped = [endpoint["port"] for endpoint in monitor["podMetricsEndpoints"]]
    label, name, _ = [rule for rule in scrape["relabel_configs"] if "regex" in rule]
    pods = job["pytorchReplicaSpecs"]

    assert set(pods) == {"Master", "Worker"}
    for pod in (replica["template"] for replica in pods.values()):
        (container,) = pod["spec"]["containers"]
        ports = [port["containerPort"] for port in container["ports"]]
        assert ports == [DEFAULT_PORT + rank for rank in range(int(job["nprocPerNode"]))]
        for port in container["ports"]:
            assert port["name"] in scraped
        assert pod["metadata"]["labels"] == monitor["selector"]["matchLabels"]
    assert all(re.fullmatch(name["regex"], port) for port in scraped)
    assert label["source_labels"] == ["__meta_kubernetes_pod_label_training_exporter"]


def test_no_target_has_a_label_that_the_series_have_themselves() -> None:
    """Prometheus would rename that of the series, and no rule would find it."""
    (scrape,) = loaded("prometheus.yml")["scrape_configs"]
    given = {rule.get("target_label") for rule in scrape["relabel_configs"]}

    assert not given & {"run", "rank", "kind", "host", "node", "local_rank"}
