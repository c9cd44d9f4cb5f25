# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from tests.unit.replay.logs import (
    NAN,
    ROWS,
    rows,
    write_csv,
    write_json_lines,
    write_trainer_state,
)
from tests.unit.replay.test_command import run
from training_exporter.replay.openmetrics import AGAIN_AFTER, parse_start
from training_exporter.replay.playing import Playback
from training_exporter.replay.trouble import ReplayError

BEGAN = 1_700_000_000.0


def backfilled(tmp_path: Path, records: list[dict[str, float]], *options: str) -> dict[str, list]:  # type: ignore[type-arg]
    """Samples of each family of the file, as the reference parser reads it."""
    log, file = write_csv(tmp_path / "log.csv", records), tmp_path / "run.om"
    result = run("replay", log, "--openmetrics", file, *options)
    assert result.exit_code == 0, result.output
    return samples_of(file)


def samples_of(file: Path) -> dict[str, list]:  # type: ignore[type-arg]
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


def test_a_log_without_times_is_not_read_in_vain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused before it is judged."""
    log = write_csv(tmp_path / "log.csv", rows())
    monkeypatch.delattr(Playback, "play")

    assert run("replay", log, "--openmetrics", tmp_path / "run.om").exit_code == 2


def test_evaluations_between_rows(tmp_path: Path) -> None:
    """Have times between those of the rows, as their steps are."""
    log, file = tmp_path / "trainer_state.json", tmp_path / "run.om"
    history: list[dict[str, float]] = []
    for step in range(50, 1501, 50):
        if step % 500 == 0:
            history.append({"step": step, "loss": 2.0})
        history.append({"step": step, "eval_loss": 3.0})
    write_trainer_state(log, history)

    result = run(
        "replay", log, "--openmetrics", file, "--start", str(BEGAN), "--row-seconds", "100"
    )  # fmt: skip

    times = [sample.timestamp for sample in samples_of(file)["training_eval_loss"]]
    assert times == [BEGAN + step / 5 - 100 for step in range(50, 1501, 50)]
    assert "Note" not in result.output


def test_evaluations_that_share_a_time_are_told(tmp_path: Path) -> None:
    """The first one stays; another data set has its own."""
    evaluation = {"timestamp": BEGAN + 5, "eval_loss": 3.0}
    log = write_json_lines(
        tmp_path / "log.jsonl",
        [
            {"step": 1, "timestamp": BEGAN, "loss": 2.0},
            {"step": 2, **evaluation},
            {"step": 3, **evaluation},
            {"step": 4, "timestamp": BEGAN + 5, "eval_wiki_loss": 3.0},
            {"step": 5, "timestamp": BEGAN + 9, "loss": 2.0},
        ],
    )

    result = run("replay", log, "--openmetrics", tmp_path / "run.om")

    found = samples_of(tmp_path / "run.om")["training_eval_loss"]
    assert [sample.labels["dataset"] for sample in found] == ["eval", "wiki"]
    assert "Note: 1 evaluation whose time is not after the last one, which is left out" in (
        result.output
    )


def test_a_log_of_which_some_rows_have_times(tmp_path: Path) -> None:
    """The others are left out, or all times are reckoned: the two are not mixed."""
    records = [
        {"step": row["step"], "loss": 2.0, "timestamp": "" if row["step"] % 10 else BEGAN + i}
        for i, row in enumerate(rows())
    ]
    log, file = write_json_lines(tmp_path / "log.jsonl", records), tmp_path / "run.om"

    partly = run("replay", log, "--openmetrics", file)
    times = [sample.timestamp for sample in samples_of(file)["training_loss"]]
    wholly = run("replay", log, "--openmetrics", file, "--start", "1e9")
    reckoned = [sample.timestamp for sample in samples_of(file)["training_loss"]]

    assert times == [BEGAN + i for i in range(9, ROWS, 10)]
    assert f"Note: {ROWS - ROWS // 10} rows without a time, which are left out" in partly.output
    assert reckoned == [1e9 + i for i in range(ROWS)]
    assert f"{ROWS // 10} times in the log that are not used, as --start" in wholly.output


def test_a_column_of_times_that_are_none(tmp_path: Path) -> None:
    """Is the same as a log without times."""
    records = [{**row, "timestamp": 0.0} for row in rows()]
    log = write_csv(tmp_path / "log.csv", records)

    result = run("replay", log, "--openmetrics", tmp_path / "run.om")

    assert result.exit_code == 2
    assert "no row of the log has a time: say when the run began, such as --start" in result.stderr
    assert not (tmp_path / "run.om").exists()


def test_reckoned_times_are_unix_times(tmp_path: Path) -> None:
    """A time from row to row of a thousand years leads to none."""
    log = write_csv(tmp_path / "log.csv", rows())

    result = run(
        "replay", log, "--openmetrics", tmp_path / "run.om", "--start", "1e9",
        "--row-seconds", "1e12",
    )  # fmt: skip

    assert result.exit_code == 2
    assert "--row-seconds 1e+12 lead to 1.001e+12, which is no Unix time" in result.stderr
    assert not (tmp_path / "run.om").exists()


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
