# SPDX-License-Identifier: Apache-2.0
"""What a person at a shell can use afterwards."""

from __future__ import annotations

from training_exporter.demo.shell import folder_for_reports


def test_a_folder_stays_only_with_a_report_in_it() -> None:
    """Nobody wants to clear up empty ones."""
    with folder_for_reports() as empty:
        assert empty.is_dir()
    with folder_for_reports() as full:
        (full / "report.json").touch()

    assert not empty.exists()
    assert (full / "report.json").exists()
