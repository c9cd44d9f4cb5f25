# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from xml.etree import ElementTree

import matplotlib
import pytest

from tests.unit.replay.logs import ROWS, rows, write_csv
from tests.unit.replay.test_command import run
from training_exporter import catalog
from training_exporter.replay.playing import Plan, Playback
from training_exporter.replay.plotting import curves
from training_exporter.replay.plotting.curves import CAPACITY, Curve, Sketch
from training_exporter.replay.plotting.marks import COLOURS, MAX_TINTS
from training_exporter.replay.plotting.panels import MAX_EVALUATIONS

Row = dict[str, float]


class Picture:
    """What is in an SVG file: its texts, and the elements that have a name."""

    def __init__(self, path: Path) -> None:
        tree = ElementTree.parse(path)
        self.size = path.stat().st_size
        self.texts = ["".join(each.itertext()) for each in tree.iter() if each.tag.endswith("text")]
        self.names = {each.get("id", ""): each for each in tree.iter()}

    def bars(self, name: str) -> int:
        """How many bars there are in an element."""
        return self._outline(name).count("z")

    def lines(self, name: str) -> int:
        """How many lines there are in an element, which are not joined."""
        return len(re.findall(r"M [^M]*L", self._outline(name)))

    def _outline(self, name: str) -> str:
        paths = [each for each in self.names[name].iter() if each.tag.endswith("path")]
        return "".join(path.get("d", "") for path in paths)


def drawn(tmp_path: Path, records: list[Row], *options: str) -> Picture:
    """What `replay --plot` makes of a log."""
    log, file = write_csv(tmp_path / "log.csv", records), tmp_path / "run.svg"
    result = run("replay", log, "--plot", file, *options)
    assert result.exit_code == 0, result.output
    return Picture(file)


def changed(**changes: Callable[[Row], float]) -> list[Row]:
    """The usual rows with some values changed."""
    return [{**row, **{name: change(row) for name, change in changes.items()}} for row in rows()]


def test_a_picture_of_a_run(tmp_path: Path) -> None:
    """Both curves with their averages, what was found by name, number and place, and each NaN."""
    picture = drawn(tmp_path, rows(stride=1000), "--run", "my run")

    assert {"loss", "loss-ema", "grad-norm", "grad-norm-ema"} <= set(picture.names)
    assert picture.texts.count("EMA") == 2
    assert {"my run", "loss", "gradient norm", "optimiser step", "300,000"} <= set(picture.texts)
    assert {"loss_spike: 1", "non_finite: 1", "1 NaN or Inf"} <= set(picture.texts)
    assert any(f"CSV, {ROWS} rows, robust: 2 anomalies" in text for text in picture.texts)
    assert picture.bars("anomalies-loss_spike-robust") == 1
    assert picture.bars("loss-loss_spike") == 1
    assert picture.bars("loss-non-finite") == 1
    assert "grad-norm-non-finite" not in picture.names


def test_a_nan_breaks_the_loss_and_not_its_average(tmp_path: Path) -> None:
    """No line is drawn through what is not there; an average leaves it out."""
    picture = drawn(tmp_path, rows())

    assert picture.lines("loss") == 2
    assert picture.lines("loss-ema") == 1


def test_averages_are_those_of_the_monitor(tmp_path: Path) -> None:
    """After every row where there are few, and after the last row always."""
    playback = Playback(write_csv(tmp_path / "log.csv", rows()), Plan())
    sketch = Sketch(playback.judges[0], steps_known=True)
    monitor = playback.judges[0].monitor
    seen: list[float | None] = []
    playback.play(judged=lambda event: (sketch.note(event), seen.append(monitor.snapshot.loss_ema)))
    sketch.finish()

    assert [point.level for point in sketch.loss.points] == seen
    assert sketch.grad_norm.points[-1].level == monitor.snapshot.grad_norm_ema


def test_a_restart_ends_the_lines(tmp_path: Path) -> None:
    """The steps that were made twice are drawn twice, and nothing is drawn backwards."""
    picture = drawn(tmp_path, rows() + rows()[250:])

    assert picture.lines("grad-norm") == 2
    assert picture.lines("grad-norm-ema") == 2
    assert "restart: 1" in picture.texts
    assert "optimiser step" in picture.texts


@pytest.mark.parametrize(
    ("records", "label"),
    [
        (rows()[:100] * 5, "row of the log, as its steps go back"),
        (
            [{"loss": row["loss"], "epoch": 1} for row in rows()],
            "row of the log, which has no steps",
        ),
        ([{**row, "step": 2**54 * row["step"]} for row in rows()], "as its steps are too large"),
    ],
)
def test_rows_where_steps_are_no_order(tmp_path: Path, records: list[Row], label: str) -> None:
    """Such as steps that begin anew in each epoch: the axis is that of the rows, and says so."""
    picture = drawn(tmp_path, records)

    assert any(label in text for text in picture.texts)
    assert picture.lines("loss-ema") == 1


@pytest.mark.parametrize(
    ("loss", "label"),
    [
        (lambda row: row["loss"], "loss"),
        (lambda row: 5000.0 if row["step"] == 9 else 2.0, "loss (log scale)"),
        (lambda row: 1e6 * 0.9 ** row["step"], "loss (log scale)"),
        (lambda row: 5000.0 if row["step"] == 9 else row["step"] % 3 - 1, "beyond ±1)"),
        (lambda row: math.nan, "loss (no finite value)"),
        (lambda row: 0.0, "loss"),
        (lambda row: 1.7e308 * (-1) ** row["step"], "loss"),
        (lambda row: 1e-320 if row["step"] == 9 else 1.7e308, "loss"),
    ],
)
def test_the_scale_fits(tmp_path: Path, loss: Callable[[Row], float], label: str) -> None:
    """A spike does not press all else flat, and the axis says how it is drawn."""
    picture = drawn(tmp_path, changed(loss=loss))

    assert any(text.endswith(label) for text in picture.texts)


@pytest.mark.parametrize("count", [1, 3])
def test_a_short_run(tmp_path: Path, count: int) -> None:
    """Has its points marked, as a line may show none."""
    picture = drawn(tmp_path, rows()[:count])

    uses = [each for each in picture.names["loss"].iter() if each.tag.endswith("use")]
    assert len(uses) == count
    assert any("no anomalies" in text for text in picture.texts)


def test_evaluations_and_clipping(tmp_path: Path) -> None:
    """Are drawn with the curves that they belong to; more data sets than one can tell apart are
    counted."""
    sets = {f"eval/set{i}_loss": 2.0 for i in range(MAX_EVALUATIONS + 2)}
    picture = drawn(tmp_path, [{**row, **sets} for row in rows()], "--clip", "0.5")

    assert {"eval-set0", f"eval-set{MAX_EVALUATIONS - 1}", "clip-threshold"} <= set(picture.names)
    assert f"eval-set{MAX_EVALUATIONS}" not in picture.names
    assert {"loss of set0", "and 2 more data sets", "clip threshold, 0.5"} <= set(picture.texts)


def test_a_log_without_gradients(tmp_path: Path) -> None:
    """Has no panel for them."""
    picture = drawn(tmp_path, [{"step": row["step"], "loss": row["loss"]} for row in rows()])

    assert "loss" in picture.names
    assert "gradient norm" not in picture.texts


def test_two_profiles(tmp_path: Path) -> None:
    """Each has its own lane for a kind, and the curves are those of the run."""
    picture = drawn(tmp_path, rows(), "--profile", "both")

    assert {"loss_spike, robust: 1", "loss_spike, textbook: 1"} <= set(picture.texts)
    assert picture.texts.count("EMA") == 2
    assert picture.bars("loss-loss_spike") == 1


def test_a_long_run_with_many_anomalies_is_a_small_file(tmp_path: Path) -> None:
    """What cannot be told apart is one mark and one point, and all of it is counted."""
    random = Random(1)
    records = [
        {
            "step": step,
            "loss": math.nan if step % 40 == 0 else 2 + random.gauss(0, 0.02),
            "grad_norm": 0.6 * (80 if step % 150 == 0 else 1),
        }
        for step in range(1, 20_001)
    ]

    picture = drawn(tmp_path, records)

    assert picture.size < 300_000
    assert "500 NaN or Inf" in picture.texts
    assert "lowest to highest of 32 rows" in picture.texts
    assert picture.bars("anomalies-gradient_explosion-robust") > MAX_TINTS
    assert "grad-norm-gradient_explosion" not in picture.names


@pytest.mark.parametrize("count", [CAPACITY, CAPACITY + 1, 12_345, 100_000])
def test_a_curve_never_grows_beyond_its_points(count: int) -> None:
    """They stand for all values, whose extremes, mean and order they keep."""
    random = Random(count)
    values = [random.gauss(0, 1) for _ in range(count)]
    curve = Curve(lambda: 1.0)
    for row, value in enumerate(values):
        curve.add(row * 5 // count, row, 2 * row, value)
    curve.finish()

    points = curve.points
    assert len(points) <= CAPACITY
    assert [p.first_row for p in points[1:]] == [p.last_row + 1 for p in points[:-1]]
    assert (points[-1].last_row, points[-1].last_step) == (count - 1, 2 * count - 2)
    assert min(p.least for p in points) == min(values)
    assert max(p.most for p in points) == max(values)
    assert sum(p.mean * p.finite for p in points) == pytest.approx(sum(values), abs=1e-6)
    assert {p.part for p in points} == set(range(5))


def test_names_of_any_kind(tmp_path: Path) -> None:
    """Are written as they are: no formula is made of dollars, and what no file holds is
    replaced."""
    picture = drawn(tmp_path, rows(), "--run", "a$b$ <c> \x01 \u65e5")

    assert "a$b$ <c> \N{REPLACEMENT CHARACTER} \u65e5" in picture.texts


def test_the_same_run_is_the_same_file(tmp_path: Path) -> None:
    """Without a date, and whatever the user has set for his own drawings, which stays set."""
    drawn(tmp_path, rows())
    first = (tmp_path / "run.svg").read_bytes()
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path"}):
        drawn(tmp_path, rows())
        assert matplotlib.rcParams["font.size"] == 30

    assert (tmp_path / "run.svg").read_bytes() == first
    assert "matplotlib.pyplot" not in sys.modules


@pytest.mark.parametrize(("suffix", "start"), [("png", b"\x89PNG"), ("PDF", b"%PDF")])
def test_other_formats(tmp_path: Path, suffix: str, start: bytes) -> None:
    """By the end of the file's name."""
    file = tmp_path / f"run.{suffix}"

    assert run("replay", write_csv(tmp_path / "log", rows()), "--plot", file).exit_code == 0
    assert file.read_bytes().startswith(start)


def test_a_file_that_cannot_be_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stays as it was, and no draft is left behind."""
    log, file = write_csv(tmp_path / "log", rows()), tmp_path / "run.svg"
    file.write_text("before")

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "replace", full)
    result = run("replay", log, "--plot", file)

    assert result.exit_code == 2
    assert "no space left on device" in result.stderr
    assert file.read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "run.svg"]


def test_more_anomalies_than_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All are counted, and it is said that not all are drawn."""
    monkeypatch.setattr("training_exporter.replay.judging.MAX_KEPT", 1)

    picture = drawn(tmp_path, changed(loss=lambda row: math.nan if row["step"] % 50 == 0 else 2.0))

    assert "non_finite: 6, the first 1 drawn" in picture.texts


def test_many_restarts_are_drawn_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines over each other say nothing any more."""
    monkeypatch.setattr(curves, "MAX_PARTS", 2)

    picture = drawn(tmp_path, rows() + rows()[290:] + rows()[290:])

    assert "row of the log, as its steps go back" in picture.texts


def test_each_kind_has_its_colour() -> None:
    """And no other kind has it."""
    assert list(COLOURS) == list(catalog.ANOMALY_KINDS)
    assert len(set(COLOURS.values())) == len(COLOURS)
