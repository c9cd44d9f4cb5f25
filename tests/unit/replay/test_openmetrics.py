# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from tests.unit.replay.logs import NAN, ROWS, rows, write_csv
from tests.unit.replay.test_command import run
from training_exporter.replay.openmetrics import AGAIN_AFTER, parse_start
from training_exporter.replay.trouble import ReplayError

BEGAN = 1_700_000_000.0


def backfilled(tmp_path: Path, records: list[dict[str, float]], *options: str) -> dict[str, list]:  # type: ignore[type-arg]
    """Samples of each family of the file, as the reference parser reads it."""
    log, file = write_csv(tmp_path / "log.csv", records), tmp_path / "run.om"
    result = run("replay", log, "--openmetrics", file, *options)
    assert result.exit_code == 0, result.output
    text = file.read_text(encoding="utf-8")
    return {
        family.name: [each._replace(timestamp=float(each.timestamp)) for each in family.samples]
        for family in text_string_to_metric_families(text)
    }


def test_a_run_with_times(tmp_path: Path) -> None:
    """Each row at its time, NaN included, a family after the other, and the end is marked."""
    records = [{**row, "timestamp": BEGAN + 10 * row["step"]} for row in rows()]

    families = backfilled(tmp_path, records, "--run", 'a "b"')

    losses = families["training_loss"]
    assert [sample.timestamp for sample in losses] == [BEGAN + 10 * i for i in range(1, ROWS + 1)]
    assert losses[0].value == records[0]["loss"]
    assert losses[0].labels == {"run": 'a "b"', "rank": "0"}
    assert math.isnan(losses[NAN - 1].value)
    assert families["training_step"][-1].value == ROWS
    assert families["training_learning_rate"][0].labels["group"] == "0"


def test_counters_are_never_forgotten(tmp_path: Path) -> None:
    """They start at 0, change with their row, and come again before Prometheus drops them."""
    records = [{**row, "timestamp": BEGAN + 10 * row["step"]} for row in rows()]

    samples = backfilled(tmp_path, records)["training_anomalies"]

    nans = [sample for sample in samples if sample.labels["kind"] == "non_finite"]
    assert (nans[0].value, nans[0].timestamp) == (0.0, BEGAN + 10)
    first = next(sample for sample in nans if sample.value == 1.0)
    assert first.timestamp == BEGAN + 10 * NAN
    times = [sample.timestamp for sample in nans]
    assert max(after - before for before, after in pairwise(times)) <= AGAIN_AFTER


def test_a_run_without_times(tmp_path: Path) -> None:
    """Needs to be told when it began; a restart does not send time back."""
    log = write_csv(tmp_path / "log.csv", rows())
    refused = run("replay", log, "--openmetrics", tmp_path / "run.om")
    assert refused.exit_code == 2
    assert "--start" in refused.stderr
    assert not (tmp_path / "run.om").exists()

    again = rows() + rows()[100:]
    losses = backfilled(
        tmp_path, again, "--start", "2023-11-14T22:13:20", "--row-seconds", "0.5"
    )["training_loss"]  # fmt: skip

    assert [sample.timestamp for sample in losses] == [BEGAN + i / 2 for i in range(2 * ROWS - 100)]


def test_times_that_stand_still_are_told(tmp_path: Path) -> None:
    """Prometheus would drop them without a word."""
    log = write_csv(tmp_path / "log.csv", [{**row, "timestamp": BEGAN} for row in rows()])

    result = run("replay", log, "--openmetrics", tmp_path / "run.om")

    assert f"Note: {ROWS - 1} rows whose time is not after the last one" in result.output


@pytest.mark.parametrize(
    ("column", "options", "message"),
    [
        (BEGAN * 1000, [], "no Unix time in seconds"),
        (BEGAN, ["--profile", "both"], "takes one profile"),
        (BEGAN, ["--start", "yesterday"], "is a date such as 2026-01-31T10:00"),
    ],
)
def test_what_cannot_be_written(
    tmp_path: Path, column: float, options: list[str], message: str
) -> None:
    """Is refused, and no file is left behind."""
    records = [{**row, "timestamp": column + row["step"]} for row in rows()]
    log = write_csv(tmp_path / "log.csv", records)

    result = run("replay", log, "--openmetrics", tmp_path / "run.om", *options)

    assert result.exit_code == 2
    assert message in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


def test_a_file_that_cannot_be_replaced(tmp_path: Path) -> None:
    """Leaves no draft behind."""
    log = write_csv(tmp_path / "log.csv", rows())
    (tmp_path / "run.om").mkdir()

    result = run("replay", log, "--openmetrics", tmp_path / "run.om", "--start", str(BEGAN))

    assert result.exit_code == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.csv", "run.om"]


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine that is not at Greenwich."""
    monkeypatch.setenv("TZ", "JST-9")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("elsewhere")
def test_when_a_run_began() -> None:
    """UTC unless the text says otherwise; milliseconds are refused."""
    assert parse_start("2023-11-14T22:13:20") == BEGAN
    assert parse_start("2023-11-14T23:13:20+01:00") == BEGAN
    assert parse_start("1700000000") == BEGAN
    with pytest.raises(ReplayError):
        parse_start("1700000000000")
