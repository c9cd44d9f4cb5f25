# SPDX-License-Identifier: Apache-2.0
"""docker-compose.yml, as far as it can be held without an engine. tests/e2e has one run it."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomllib
import yaml

from tests.conftest import ROOT

TEXT = (ROOT / "docker-compose.yml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
LASTING = {name: service for name, service in SERVICES.items() if name != "alertmanager-config"}
GRAFANA = SERVICES["grafana"]["environment"]
OWN_IMAGE = "training-exporter-demo"
START = ROOT / "scripts" / "grafana_start.sh"


def loaded(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text())


def mounts(service: str) -> dict[str, str]:
    """Path in the repository -> path in the container."""
    texts = [v for v in SERVICES[service]["volumes"] if isinstance(v, str) and v.startswith("./")]
    return {source[2:]: target for source, target in (text.split(":")[:2] for text in texts)}


def test_compose_finds_nothing_wrong_with_it(newer_binary: Callable[[str], str]) -> None:
    """No unknown key, no service or volume that is not there; without any setting."""
    compose = newer_binary("NEWER_DOCKER_COMPOSE")
    checked = subprocess.run(
        [compose, "--env-file=/dev/null", "--file", ROOT / "docker-compose.yml", "config", "-q"],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": os.environ["PATH"]},
    )

    assert (checked.returncode, checked.stderr) == (0, "")


def test_images_are_pinned() -> None:
    """What comes up today comes up in a year."""
    names = {service["image"] for service in SERVICES.values()} - {OWN_IMAGE}
    names.add(re.findall(r"^ARG PYTHON_IMAGE=(\S+)$", dockerfile(), re.MULTILINE)[0])

    assert all(re.search(r":v?\d+\.\d+\.\d+", name) for name in names)


def dockerfile() -> str:
    return (ROOT / "exporter" / "Dockerfile").read_text()


@pytest.mark.parametrize("name", LASTING)
def test_every_service_is_contained(name: str) -> None:
    """Reachable from this machine only, bounded, without rights, and looked after."""
    service = SERVICES[name]

    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert service["mem_limit"]
    assert service["cap_drop"] == ["ALL"]
    assert "healthcheck" in service or (
        service["image"] == OWN_IMAGE and "HEALTHCHECK" in dockerfile()
    )


def test_what_is_mounted_is_there() -> None:
    """Docker makes an empty folder of what is not, and says nothing."""
    sources = [
        source for name in SERVICES if SERVICES[name].get("volumes") for source in mounts(name)
    ]

    assert [source for source in sources if not (ROOT / source).exists()] == []


def test_every_setting_is_in_the_example() -> None:
    """And the example has none that does nothing, nor another default."""
    used = dict(re.findall(r"\$\{(\w+):-((?:[^{}])*)\}", TEXT))
    example = (ROOT / ".env.example").read_text()

    assert dict(re.findall(r"^#(\w+)=(.*)$", example, re.MULTILINE)) == used


def test_prometheus_differs_in_addresses_only() -> None:
    """From the configuration that is meant for a machine of one's own."""
    here, there = loaded("prometheus/prometheus.yml"), loaded("prometheus/compose.yml")
    addresses = {
        name: f"{name}:{port}" for name, port in (("alertmanager", 9093), ("trainer", 10400))
    }

    (alertmanager,) = there["alerting"]["alertmanagers"]
    (job,) = there["scrape_configs"]
    assert alertmanager["static_configs"] == [{"targets": [addresses["alertmanager"]]}]
    assert job["static_configs"] == [{"targets": [addresses["trainer"]]}]
    assert job["file_sd_configs"] == here["scrape_configs"][0]["file_sd_configs"]
    assert set(addresses) <= set(SERVICES)
    for config in (here, there):
        del config["alerting"]
        for each in config["scrape_configs"]:
            each.pop("static_configs", None)
            each.pop("file_sd_configs", None)
    assert there == here


def test_prometheus_takes_its_configuration(binary: Callable[[str], str]) -> None:
    """From where it is mounted it finds the rules at the same relative path."""
    checked = subprocess.run(
        [binary("promtool"), "check", "config", ROOT / "prometheus" / "compose.yml"],
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert checked.returncode == 0, checked.stderr
    assert "rules found" in checked.stdout
    where = mounts("prometheus")
    folder = Path(where["prometheus"])
    assert os.path.normpath(folder / "../alertmanager/rules") == where["alertmanager/rules"]


def test_grafana_finds_what_it_is_given() -> None:
    """The dashboards where the provider looks, the home among them, and the services by name."""
    where = mounts("grafana")
    (provider,) = loaded("grafana/provisioning/dashboards/training.yaml")["providers"]
    sources = loaded("grafana/provisioning/datasources/training.yaml")["datasources"]
    home = Path(GRAFANA["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])

    assert where["grafana/provisioning"] == "/etc/grafana/provisioning"
    assert provider["options"]["path"] == where["grafana/dashboards"] == str(home.parent)
    assert (ROOT / "grafana" / "dashboards" / home.name).is_file()
    for source in sources:
        name, port = re.fullmatch(r"http://(\w+):(\d+)", source["url"]).groups()  # type: ignore[union-attr]
        assert any(published.endswith(f":{port}") for published in SERVICES[name]["ports"])


def test_grafana_shows_and_does_not_tell() -> None:
    """Whoever opens it may look; nothing is reported, looked up or fetched elsewhere."""
    off = [
        "GF_ANALYTICS_CHECK_FOR_PLUGIN_UPDATES",
        "GF_ANALYTICS_CHECK_FOR_UPDATES",
        "GF_ANALYTICS_REPORTING_ENABLED",
        "GF_NEWS_NEWS_FEED_ENABLED",
        "GF_PLUGINS_PLUGIN_ADMIN_ENABLED",
        "GF_SNAPSHOTS_EXTERNAL_ENABLED",
        "GF_USERS_ALLOW_SIGN_UP",
    ]
    on = [
        "GF_AUTH_ANONYMOUS_ENABLED",
        "GF_PLUGINS_PREINSTALL_DISABLED",
        "GF_PLUGINS_PUBLIC_KEY_RETRIEVAL_DISABLED",
        "GF_SECURITY_DISABLE_GRAVATAR",
    ]

    assert {name: GRAFANA[name] for name in off} == dict.fromkeys(off, "false")
    assert {name: GRAFANA[name] for name in on} == dict.fromkeys(on, "true")
    assert GRAFANA["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert SERVICES["grafana"]["entrypoint"] == [
        "/bin/sh",
        mounts("grafana")["scripts/grafana_start.sh"],
    ]


def started(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """What Grafana would be started with: the script, and `env` in Grafana's place."""
    return subprocess.run(
        ["sh", START],
        capture_output=True,
        text=True,
        timeout=30,
        env={
            "PATH": os.environ["PATH"],
            "GRAFANA_RUN": "env",
            "GF_PATHS_DATA": str(folder),
            **environment,
        },
    )


def test_grafana_makes_a_password_and_keeps_it(tmp_path: Path) -> None:
    """Where none is given: another on each machine, private, the same at the next start."""
    machines = [tmp_path / "one", tmp_path / "other"]
    for machine in machines:
        machine.mkdir()
    said = [started(machine, GF_SECURITY_ADMIN_PASSWORD="").stdout for machine in machines]
    files = [machine / "admin-password" for machine in machines]
    made = [file.read_text() for file in files]

    for output, file in zip(said, files, strict=True):
        assert f"GF_SECURITY_ADMIN_PASSWORD__FILE={file}\n" in output
        assert "GF_SECURITY_ADMIN_PASSWORD=" not in output  # Grafana refuses both
        assert file.stat().st_mode & 0o777 == 0o600
    assert len(made[0].strip()) >= 20
    assert made[0] != made[1]
    started(machines[0])
    assert files[0].read_text() == made[0]


def test_grafana_takes_a_given_password(tmp_path: Path) -> None:
    """And makes none beside it."""
    output = started(tmp_path, GF_SECURITY_ADMIN_PASSWORD="given to it").stdout

    assert "GF_SECURITY_ADMIN_PASSWORD=given to it\n" in output
    assert not list(tmp_path.iterdir())


def test_grafana_refuses_the_password_that_everybody_knows(tmp_path: Path) -> None:
    """It does not start, and says what to do."""
    refused = started(tmp_path, GF_SECURITY_ADMIN_PASSWORD="admin")

    assert refused.returncode == 2
    assert "choose another, or none and one is made" in refused.stderr
    assert refused.stdout == ""


def test_the_image_has_all_that_the_wheel_is_made_of() -> None:
    """What .dockerignore keeps out cannot be built in."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    forced = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    let_in = re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)

    assert {source.partition("/")[0] for source in forced} <= set(let_in)
    assert {"exporter", "pyproject.toml", "README.md", "LICENSE", "constraints.txt"} <= set(let_in)
