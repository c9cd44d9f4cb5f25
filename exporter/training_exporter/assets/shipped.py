# SPDX-License-Identifier: Apache-2.0
"""Where the files are that go into Prometheus, Alertmanager and Grafana."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from training_exporter.assets.writing import AssetsError

PATTERNS = (
    "alertmanager/alertmanager.yml",
    "alertmanager/rules/*.yml",
    "alertmanager/templates/*.tmpl",
    "examples/kubernetes/podmonitor.yaml",
    "grafana/dashboards/*.json",
    "grafana/provisioning/**/*.yaml",
    "prometheus/prometheus.yml",
)
"""Below the repository's root. pyproject.toml puts the same folders into the wheel."""

INSTALLED = Path(__file__).parent / "files"
CHECKOUT = Path(__file__).parents[3]


def shipped_files(roots: tuple[Path, ...] = (INSTALLED, CHECKOUT)) -> Mapping[str, str]:
    """Path in the repository -> text, in order of the paths.

    The wheel has a copy of the files; an editable install reads those of its checkout.

    Args:
        roots: where to look; the first that is there is taken.

    Raises:
        AssetsError: they are nowhere, or some are missing.
    """
    root = next((root for root in roots if (root / "alertmanager").is_dir()), None)
    if root is None:
        raise AssetsError("this installation has no assets; install the wheel of training-exporter")
    found = {pattern: sorted(root.glob(pattern)) for pattern in PATTERNS}
    if missing := [pattern for pattern, paths in found.items() if not paths]:
        raise AssetsError(f"this installation lacks {', '.join(missing)}")
    paths = sorted(path for group in found.values() for path in group)
    return {path.relative_to(root).as_posix(): path.read_text("utf-8") for path in paths}
