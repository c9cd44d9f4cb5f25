# SPDX-License-Identifier: Apache-2.0
"""What the documentation says is what the code does."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT
from training_exporter import ExporterConfig
from training_exporter.catalog import ANOMALY_KINDS, CATALOG
from training_exporter.config import ENV_PREFIX
from training_exporter.reference import detectors_markdown, metrics_markdown

PAGES = sorted(
    [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")]
)
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize(
    ("page", "made"), [("metrics.md", metrics_markdown), ("detectors.md", detectors_markdown)]
)
def test_reference_pages_are_made_from_the_code(page: str, made: Callable[[], str]) -> None:
    """After a change: make docs."""
    assert (ROOT / "docs" / page).read_text() == made()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    """A renamed file takes its links along."""
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())

    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_metric_names_are_in_the_catalogue(page: Path) -> None:
    """A renamed metric takes its mentions along."""
    named = set(re.findall(r"`(training_(?!exporter\.)[a-z_]+)[`{]", page.read_text()))

    assert named - {"training_exporter"} <= set(CATALOG)


def test_the_readme_lists_every_setting() -> None:
    """Each keyword with its variable and its default."""
    rows = dict(re.findall(r"^\| `(\w+)` \| `(\w+)` \|", README, flags=re.MULTILINE))

    assert rows == {
        name: f"{ENV_PREFIX}{name.upper()}" for name in ExporterConfig.__dataclass_fields__
    }


def test_the_readme_lists_every_kind_of_anomaly() -> None:
    """With the sentence that the log and the page show."""
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|$", README, flags=re.MULTILINE))

    assert {kind: rows.get(kind) for kind in ANOMALY_KINDS} == dict(ANOMALY_KINDS)
