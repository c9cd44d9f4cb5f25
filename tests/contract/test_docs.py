# SPDX-License-Identifier: Apache-2.0
"""What the documentation says is what the code does."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
from hatchling.metadata.core import ProjectMetadata
from hatchling.plugin.manager import PluginManager

from tests.conftest import ROOT
from training_exporter import ExporterConfig
from training_exporter.catalog import ANOMALY_KINDS, CATALOG
from training_exporter.config import ENV_PREFIX
from training_exporter.reference import detectors_markdown, metrics_markdown

PAGES = sorted(
    [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")]
)
README = (ROOT / "README.md").read_text()
SETTING = re.compile(r"^\| `(\w+)` \| `(\w+)` \| ([^|]*?) ?\| ", flags=re.MULTILINE)
CONFIG = ExporterConfig()
LINK = re.compile(r"\]\(([^)]*)\)")


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
def test_links_to_headings_lead_somewhere(page: Path) -> None:
    """A heading that is written anew takes its links along."""
    targets = re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", page.read_text())
    places = [(page.parent / file if file else page, name) for file, name in targets]

    assert [f"{file}#{name}" for file, name in places if name not in headings(file)] == []


def headings(page: Path) -> set[str]:
    """The names by which GitHub knows a page's headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    lines = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", line).strip().lower().replace(" ", "-") for line in lines}


def test_the_readme_is_whole_on_pypi() -> None:
    """Its links and pictures lead to the repository, as there are no files beside it."""
    metadata = ProjectMetadata(str(ROOT), PluginManager()).core
    links = LINK.findall(metadata.readme)

    assert metadata.readme_content_type == "text/markdown"
    assert len(links) == len(LINK.findall(README)) > 0
    assert [link for link in links if not link.startswith("https://")] == []
    pictures = [link for link in links if link.endswith(".png")]
    assert pictures
    assert all(link.startswith("https://raw.githubusercontent.com/") for link in pictures)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_metric_names_are_in_the_catalogue(page: Path) -> None:
    """A renamed metric takes its mentions along."""
    named = set(re.findall(r"`(training_(?!exporter\.)[a-z_]+)[`{]", page.read_text()))

    assert named - {"training_exporter"} <= set(CATALOG)


def test_one_page_lists_every_setting() -> None:
    """Each keyword with its variable and its default."""
    listed = SETTING.findall((ROOT / "docs" / "settings.md").read_text())

    assert sorted(name for name, _, _ in listed) == sorted(each.name for each in fields(CONFIG))
    assert wrong_settings(listed) == []


@pytest.mark.parametrize("page", ["README.md", "docs/gpu.md"])
def test_other_pages_say_the_same_of_settings(page: str) -> None:
    """They name the few that their readers set."""
    listed = SETTING.findall((ROOT / page).read_text())

    assert listed
    assert wrong_settings(listed) == []


def wrong_settings(listed: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """Rows whose variable or default is not the code's. A default of None is told in words."""
    return [
        (name, variable, default)
        for name, variable, default in listed
        if variable != f"{ENV_PREFIX}{name.upper()}"
        or default != (as_in_a_variable(getattr(CONFIG, name)) or default)
    ]


def as_in_a_variable(value: object) -> str:
    """A value as the environment has it, empty where there is none to write."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"{value:g}"
    return value if isinstance(value, str) else ""


def test_the_readme_lists_every_kind_of_anomaly() -> None:
    """With the sentence that the log and the page show."""
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|$", README, flags=re.MULTILINE))

    assert {kind: rows.get(kind) for kind in ANOMALY_KINDS} == dict(ANOMALY_KINDS)
