# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.unit.replay.logs import NAN, ROWS, SPIKE, rows, write_csv, write_json_lines
from training_exporter import cli
from training_exporter.replay import command

PLOTTING = "training_exporter.replay.plotting"


def run(*arguments: str | Path, columns: int | None = 120) -> Result:
    environment = {"COLUMNS": None if columns is None else str(columns)}
    return CliRunner().invoke(cli.app, [str(each) for each in arguments], env=environment)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return write_csv(tmp_path / "log.csv", rows(stride=10))


def test_a_replay_for_a_person(log: Path) -> None:
    """What was taken for what, how far rows are apart, what was found, what could not be judged."""
    result = run("replay", log)

    assert result.exit_code == 0
    words = " ".join(result.output.split())
    assert f"CSV, {ROWS} rows, steps 10 to 3,000, 0 evaluations" in words
    assert "loss from 'loss', grad_norm from 'grad_norm'" in words
    assert "A row every 10 steps" in words
    assert f"{SPIKE * 10:,} loss_spike 9" in words
    assert f"{NAN * 10:,} non_finite nan" in words
    assert "10 steps" in words
    assert "robust: 1 non_finite, 1 loss_spike." in words
    assert "lacks what is needed by: clipping_excess" in words
    assert "throughput_drop (for clipping_excess add --clip NORM)." in words


def test_a_replay_for_a_program(log: Path) -> None:
    """Strict JSON: what is not finite is a text."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    result = run("replay", log, "--json", "--profile", "both")
    report = json.loads(result.output, parse_constant=refuse)

    assert (report["rows"], report["steps_per_row"], report["notes"]) == (ROWS, 10, [])
    assert report["profiles"]["robust"]["counts"]["loss_spike"] == 1
    nan = report["profiles"]["robust"]["anomalies"][-1]
    assert (nan["kind"], nan["step"], nan["value"]) == ("non_finite", NAN * 10, "nan")
    assert (nan["rows"], nan["steps"], nan["over"], nan["time"]) == (1, 10, True, None)


def test_where_the_profiles_differ(log: Path) -> None:
    """Each anomaly says who found it."""
    result = run(
        "replay", log, "--profile", "both", "--set", "loss_spike.jump=9", "--set",
        "loss_spike.shift=9",
    )  # fmt: skip

    lines = {line.split()[1]: line for line in result.output.splitlines() if "00 " in line[:12]}
    assert lines["loss_spike"].split()[-1] == "textbook"
    assert lines["non_finite"].rstrip().endswith("robust and textbook")


def test_thresholds_to_try(log: Path) -> None:
    """They decide, and the output ends with what a training script needs to have them too."""
    result = run("replay", log, "--set", "loss_spike.jump=9,loss_spike.shift=9", columns=60)

    assert "robust: 1 non_finite." in result.output
    lines = result.output.splitlines()
    assert lines[-2] == (
        "PrometheusCallback(profile='robust', detectors={'loss_spike': {'jump': 9, 'shift': 9}})"
    )
    assert lines[-1] == (
        "TRAINING_EXPORTER_PROFILE=robust"
        " TRAINING_EXPORTER_DETECTORS=loss_spike.jump=9,loss_spike.shift=9"
    )


def test_names_and_clipping(tmp_path: Path) -> None:
    """What the log calls otherwise, or does not say."""
    records = [{"i": row["step"], "nll": row["loss"], "g": row["grad_norm"]} for row in rows()]
    log = write_json_lines(tmp_path / "log", records)

    result = run(
        "replay", log, "--map", "step=i,loss=nll", "--map", "grad_norm=g", "--clip", "0.3"
    )  # fmt: skip

    assert "step from 'i', loss from 'nll', grad_norm from 'g'" in result.output
    assert "1 clipping_excess" in result.output


def test_how_to_judge_clipping_is_told_where_it_helps(tmp_path: Path) -> None:
    """Not where a norm is known, be it too high to be reached, nor where no gradient norm is."""
    hint = "add --clip NORM"
    few = rows()[:5]
    log = write_csv(tmp_path / "log.csv", few)
    no_norm = write_csv(
        tmp_path / "bare.csv", [{"step": r["step"], "loss": r["loss"]} for r in few]
    )
    told = write_csv(tmp_path / "told.csv", [{**row, "clip_threshold": 1.0} for row in few])

    assert hint in run("replay", log).output
    assert hint not in run("replay", log, "--clip", "1").output
    assert hint not in run("replay", no_norm).output
    assert hint not in run("replay", told).output


def test_damage_is_told_and_the_rest_is_used(log: Path) -> None:
    """With a note for each kind of it."""
    log.write_bytes(log.read_bytes()[:-3])

    result = run("replay", log)

    assert result.exit_code == 0
    assert f"{ROWS} rows" in result.output
    assert "Note: 1 last line that does not end, without its last value." in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--profile", "strict"], "one of robust, textbook, both, not strict"),
        (["--windows", "days"], "one of steps, rows, not days"),
        (["--set", "loss_spike"], "--set must be kind.option=number"),
        (["--set", "loss_spike.factor=1.5"], "unknown option 'factor' of loss_spike; valid are"),
        (["--set", "spike.jump=1.5"], "this profile has no detector of 'spike'; it has"),
        (["--set", "loss_spike.jump=0.5"], "jump must be a number above 1"),
        (["--map", "loss:x"], "--map takes SIGNAL=NAME"),
        (["--map", "loss=x"], "no value is called 'x'"),
        (["--clip", "inf"], "--clip is a finite number, not inf"),
        (["--serve", "--row-seconds", "inf"], "--row-seconds is a finite number of seconds"),
        (["--serve", "--speed", "nan"], "--speed"),
        (["--serve", "--follow"], "--follow has a page, too"),
    ],
)
def test_what_makes_no_sense(log: Path, arguments: list[str], message: str) -> None:
    """Is one line that names what does, and exit code 2."""
    result = run("replay", log, *arguments)

    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""


def test_nothing_that_can_be_read(tmp_path: Path) -> None:
    """Exit code 2, and what was expected."""
    result = run("replay", tmp_path)

    assert result.exit_code == 2
    assert "expected a Hugging Face trainer_state.json" in result.stderr


def test_a_long_log_has_a_progress_bar(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On standard error, so that JSON stays JSON."""
    monkeypatch.setattr(command, "LONG", 10)

    result = run("replay", log, "--json")

    assert json.loads(result.stdout)["rows"] == ROWS


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("run.gif", "--plot takes a file that ends in .svg, .png, .pdf, not"),
        ("run", "--plot takes a file that ends in .svg, .png, .pdf, not"),
    ],
)
def test_a_picture_of_no_known_kind(tmp_path: Path, file: str, message: str) -> None:
    """Is refused before the log is looked at."""
    result = run("replay", tmp_path / "no log", "--plot", tmp_path / file)

    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize("option", ["--openmetrics", "--plot"])
@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("none/run.svg", "takes a file in a folder that is there, not"),
        ("folder.svg", "is a folder"),
        ("device.svg", "is something else"),
        ("loop.svg", "is something else"),
    ],
)
def test_a_place_where_nothing_can_be_written(
    tmp_path: Path, option: str, file: str, message: str
) -> None:
    """Is refused before the log is looked at."""
    (tmp_path / "folder.svg").mkdir()
    (tmp_path / "device.svg").symlink_to("/dev/null")
    (tmp_path / "loop.svg").symlink_to("loop.svg")

    result = run("replay", tmp_path / "no log", option, tmp_path / file)

    assert result.exit_code == 2
    assert f"{option} takes a file" in result.stderr
    assert message in result.stderr


@pytest.mark.parametrize("option", ["--openmetrics", "--plot"])
def test_a_folder_that_is_read_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    """Is refused before the log is looked at; root may write everywhere, so it is made up."""
    monkeypatch.setattr(os, "access", lambda *_: False)

    result = run("replay", tmp_path / "no log", option, tmp_path / "run.svg")

    assert result.exit_code == 2
    assert f"{option} takes a file in a folder that can be written to, not" in result.stderr


@pytest.mark.parametrize("option", ["--openmetrics", "--plot"])
def test_a_file_that_cannot_be_written_has_the_users_name_for_it(
    log: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    """And not that of a draft."""

    def denied(path: Path, _: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "replace", denied)
    file = log.with_name("run.svg")
    start = ["--start", "1e9"] if option == "--openmetrics" else []

    result = run("replay", log, option, file, *start)

    assert result.exit_code == 2
    assert f"cannot write {file}: Permission denied" in result.stderr


@pytest.mark.parametrize("option", ["--openmetrics", "--plot"])
@pytest.mark.parametrize("name", ["log.svg", "soft.svg", "hard.svg"])
def test_a_log_is_not_written_over(log: Path, option: str, name: str) -> None:
    """Neither by its own name nor by a link's."""
    content = log.read_bytes()
    own = log.rename(log.with_name("log.svg"))
    log.with_name("soft.svg").symlink_to("log.svg")
    log.with_name("hard.svg").hardlink_to(own)
    start = ["--start", "1e9"] if option == "--openmetrics" else []

    result = run("replay", own, option, own.with_name(name), *start)

    assert result.exit_code == 2
    assert f"{option} would write over the log" in result.stderr
    assert own.read_bytes() == content


def test_one_file_is_not_two(tmp_path: Path) -> None:
    """What is written first would be gone."""
    one, same = tmp_path / "run.svg", f"{tmp_path}/./run.svg"

    result = run("replay", tmp_path / "no log", "--plot", one, "--openmetrics", same)

    assert result.exit_code == 2
    assert "--openmetrics and --plot take two files" in result.stderr


def test_a_link_stays_a_link(log: Path) -> None:
    """What it leads to is written, be it there or not."""
    folder = log.with_name("links")
    folder.mkdir()
    log.with_name("run.om").write_text("before")
    for link, target in (("link.om", "../run.om"), ("link.svg", "../picture")):
        (folder / link).symlink_to(target)

    result = run(
        "replay", log, "--openmetrics", folder / "link.om", "--start", "1e9",
        "--plot", folder / "link.svg",
    )  # fmt: skip

    assert result.exit_code == 0, result.output
    assert [path.is_symlink() for path in sorted(folder.iterdir())] == [True, True]
    assert log.with_name("run.om").read_text(encoding="utf-8").endswith("# EOF\n")
    assert log.with_name("picture").read_text(encoding="utf-8").startswith("<?xml")


def test_a_folder_gives_a_run_its_whole_name(log: Path, tmp_path: Path) -> None:
    """What follows a dot is no ending there."""
    folder, file = tmp_path / "lr0.1.log", tmp_path / "run.om"
    folder.mkdir()
    log.rename(folder / "metrics.csv")

    run("replay", folder, "--openmetrics", file, "--start", "1e9")

    assert 'training_step{run="lr0.1.log",' in file.read_text(encoding="utf-8")


def test_a_report_in_a_file_is_as_wide_as_it_needs(tmp_path: Path) -> None:
    """A terminal's width is no bound there, unless COLUMNS gives one."""
    log = write_csv(tmp_path / "log.csv", rows(stride=10**12))
    spike = re.compile(r" 150,000,000,000,000 .* loss_spike .* 1,000,000,000,000 steps .* textbook")

    assert spike.search(run("replay", log, "--profile", "both", columns=None).output)
    assert not spike.search(run("replay", log, "--profile", "both", columns=80).output)


def test_a_picture_without_matplotlib(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Says what to install; all else goes without it."""
    for name in [name for name in sys.modules if name.startswith(PLOTTING)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)

    result = run("replay", log, "--plot", log.with_name("run.svg"))

    assert result.exit_code == 2
    assert (
        "--plot needs matplotlib, which is not installed: pip install 'training-exporter[plot]'"
        in result.stderr
    )
    assert run("replay", log).exit_code == 0


def test_all_that_a_replay_can_write(log: Path, tmp_path: Path) -> None:
    """Goes together, from one reading of the log."""
    picture, metrics = tmp_path / "run.svg", tmp_path / "run.om"

    result = run(
        "replay", log, "--json", "--plot", picture, "--openmetrics", metrics, "--start", "1e9"
    )  # fmt: skip

    assert json.loads(result.stdout)["rows"] == ROWS
    assert picture.read_text(encoding="utf-8").startswith("<?xml")
    assert metrics.read_text(encoding="utf-8").endswith("# EOF\n")


@pytest.mark.parametrize("mode", ["--serve", "--follow"])
def test_what_is_played_live_is_not_drawn(log: Path, mode: str) -> None:
    """It has no end yet."""
    result = run("replay", log, mode, "--plot", log.with_name("run.svg"))

    assert result.exit_code == 2
    assert "--serve and --follow go without --json, --openmetrics and --plot" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--speed", "60"], "--speed is for --serve"),
        (["--follow", "--speed", "60"], "--speed is for --serve"),
        (["--port", "0"], "--port is for --serve or --follow"),
        (["--follow", "--row-seconds", "2"], "--row-seconds is for --serve or --openmetrics"),
        (["--start", "2026-01-31"], "--start is for --openmetrics"),
        (["--openmetrics", "run.om", "--row-seconds", "2"], "--openmetrics with --start"),
        (["--run", "past"], "--run is for --serve, --follow, --openmetrics or --plot"),
        (["--windows", "rows"], "--windows rows is for --profile textbook or both"),
    ],
)
def test_an_option_that_would_change_nothing(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    """Is refused, with what it is for, before the log is looked at."""
    result = run("replay", tmp_path / "no log", *arguments)

    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize("option", ["--serve", "--follow", "--openmetrics=run.om"])
def test_what_takes_one_profile(tmp_path: Path, option: str) -> None:
    """Is refused with both before the log is looked at, let alone waited for."""
    result = run("replay", tmp_path / "no log", option, "--profile", "both")

    assert result.exit_code == 2
    assert f"{option.partition('=')[0]} takes one profile" in result.stderr


def test_a_backtest(log: Path, tmp_path: Path) -> None:
    """A table for each profile, what was left out, and the options to paste."""
    labels = tmp_path / "labels.tsv"
    labels.write_text("id\tkind\tfirst_row\tlast_row\nlog\tspike\t140\t160\ngone\tspike\t1\t2\n")

    result = run("backtest", tmp_path, "--labels", labels, "--set", "loss_spike.jump=1.6")
    words = " ".join(result.output.split())

    assert result.exit_code == 0
    assert "1 run, 300 rows" in words
    assert "loss_spike 1 1.00/1.00 1.00/1.00" in words
    assert "Left out: gone" in words
    assert "TRAINING_EXPORTER_DETECTORS=loss_spike.jump=1.6" in words

    report = json.loads(run("backtest", tmp_path, "--labels", labels, "--json").stdout)
    assert report["profiles"]["textbook"]["loss_spike"]["recall"] == 1.0
    assert report["unit"] == "rows"


def test_a_backtest_without_labels(tmp_path: Path) -> None:
    """Exit code 2 and one line."""
    result = run("backtest", tmp_path, "--labels", tmp_path / "none.tsv")

    assert result.exit_code == 2
    assert "cannot read the labels" in result.stderr


def test_a_backtest_of_no_folder(tmp_path: Path) -> None:
    """Exit code 2, and that it is not there."""
    labels = tmp_path / "labels.tsv"
    labels.write_text("id\tkind\tfirst_row\tlast_row\nlog\tspike\t140\t160\n")

    result = run("backtest", tmp_path / "none", "--labels", labels)

    assert result.exit_code == 2
    assert "there is no folder" in result.stderr


def test_a_backtest_tells_what_is_wrong(log: Path, tmp_path: Path) -> None:
    """A person beside the tables, and a program in its report."""
    labels = tmp_path / "labels.tsv"
    labels.write_text("id\tkind\tfirst_row\tlast_row\nlog\tspike\t400\t500\ngone\tnan\t1\t2\n")

    result = run("backtest", tmp_path, "--labels", labels, "--json")

    note = "log: 1 label beyond its end at row 299, which is not counted, at rows 400 to 500"
    assert f"Note: {note}." in result.stderr
    report = json.loads(result.stdout)
    assert report["notes"] == [note]
    assert report["left_out"] == [f"gone: no file or folder below {tmp_path} is called gone"]
