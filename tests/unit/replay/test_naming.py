# SPDX-License-Identifier: Apache-2.0
"""What a run is called when nobody says it."""

from __future__ import annotations

from pathlib import Path

import pytest

from training_exporter.replay.naming import run_name


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("/logs/bert.csv", "bert"),
        ("/logs/bert.csv.gz", "bert"),
        ("/logs/bert.JSONL", "bert"),
        ("/logs/lr0.1", "lr0.1"),
        ("/logs/lr0.1.csv", "lr0.1"),
        ("/logs/.csv", ".csv"),
        ("/wandb/offline-run-20260131_100000-ab12/run-ab12.wandb", "run-ab12"),
        ("/out/bert/checkpoint-100/trainer_state.json", "bert"),
        ("/out/bert/trainer_state.json", "bert"),
        ("/out/lr0.1/trainer_log.jsonl.gz", "lr0.1"),
        ("/bert/lightning_logs/version_3/metrics.csv", "bert"),
        ("/bert/runs/Jan31_host/events.out.tfevents.1769817600.host.1.0", "Jan31_host"),
        ("/trainer_state.json", "trainer_state"),
    ],
)
def test_a_file(file: str, name: str) -> None:
    """Is called so without its known endings; where all are called so, it is the folder's name."""
    assert run_name(Path(file), is_folder=False) == name


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("/out/lr0.1", "lr0.1"),
        ("/out/exp.csv", "exp.csv"),
        ("/out/metrics", "metrics"),
        ("/out/bert/checkpoint-100", "bert"),
        ("/bert/lightning_logs/version_0", "bert"),
        ("/checkpoint-5", "checkpoint-5"),
        ("/", "/"),
    ],
)
def test_a_folder(folder: str, name: str) -> None:
    """Keeps its whole name, but for that of a checkpoint or a version."""
    assert run_name(Path(folder), is_folder=True) == name
