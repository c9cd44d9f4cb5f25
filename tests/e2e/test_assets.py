# SPDX-License-Identifier: Apache-2.0
"""`training-exporter assets` of an installed wheel, and what other programs make of it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from training_exporter.assets import FORMATS, shipped_files

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package as its wheel has it, far from the checkout."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheels = folder / "wheels"
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", f"--wheel-dir={wheels}", ROOT],
        check=True,
        timeout=300,
    )
    (wheel,) = wheels.glob("*.whl")
    target = folder / "packages"
    subprocess.run([*pip, "install", "--no-deps", f"--target={target}", wheel], check=True)
    return target


def assets(installed: Path, *arguments: str | Path) -> None:
    """Run the command of that package, and of no other."""
    code = (
        "import sys, training_exporter, training_exporter.cli as cli;"
        f"assert training_exporter.__file__.startswith({str(installed)!r});"
        "cli.app(sys.argv[1:])"
    )
    subprocess.run(
        [sys.executable, "-c", code, "assets", *arguments],
        check=True,
        timeout=60,
        cwd=installed,
        env={**os.environ, "PYTHONPATH": str(installed)},
    )


def test_prometheus_takes_what_an_installed_wheel_writes(
    installed: Path, tmp_path: Path, binary: Callable[[str], str]
) -> None:
    """The configuration finds the rules beside it; the dashboards are those of the repository."""
    promtool = binary("promtool")

    assets(installed, tmp_path)

    for command in (
        ["check", "config", tmp_path / "prometheus" / "prometheus.yml"],
        ["check", "rules", *(tmp_path / "alertmanager" / "rules").iterdir()],
    ):
        checked = subprocess.run([promtool, *command], capture_output=True, text=True, timeout=60)
        assert checked.returncode == 0, checked.stderr
        assert "rules found" in checked.stdout
    for dashboard in (ROOT / "grafana" / "dashboards").glob("*.json"):
        copy = tmp_path / "grafana" / "dashboards" / dashboard.name
        assert copy.read_bytes() == dashboard.read_bytes()
    assert (tmp_path / "grafana" / "provisioning" / "datasources").is_dir()


def test_the_repository_and_the_wheel_make_the_same_manifests(
    installed: Path, tmp_path: Path
) -> None:
    """So what the unit tests read is what an installed wheel writes."""
    assets(installed, tmp_path, "--format", "kubernetes")

    written = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert written == FORMATS["kubernetes"](shipped_files((ROOT,)))


def test_alertmanager_takes_what_the_manifests_mount(
    installed: Path, tmp_path: Path, newer_binary: Callable[[str], str]
) -> None:
    """Laid out as the operator does it, by the amtool of an Alertmanager that is new enough."""
    amtool = newer_binary("NEWER_AMTOOL")
    assets(installed, tmp_path, "--format", "kubernetes")
    secret = yaml.safe_load((tmp_path / "alertmanager-secret.yaml").read_text())
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    for key, text in secret["stringData"].items():
        (mounted / key).write_text(text.replace("/etc/alertmanager/config", str(mounted)))

    checked = subprocess.run(
        [amtool, "check-config", mounted / "alertmanager.yaml"],
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert checked.returncode == 0, checked.stderr
    assert "4 receivers" in checked.stdout
