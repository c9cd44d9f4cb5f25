# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.replay.logs import read
from training_exporter.replay.csv_logs import csv_rows


def records_of(path: Path, text: str) -> tuple[list[dict[str, object]], list[str]]:
    path.write_text(text, encoding="utf-8", newline="")
    return read(csv_rows, path)


@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
def test_csv_knows_its_delimiter(tmp_path: Path, delimiter: str) -> None:
    """Empty cells are not there, as in the rows that Lightning writes for evaluations."""
    path = tmp_path / "metrics.csv"
    lines = [["\ufeffstep", "loss", "val_loss"], ["1", "2.5", ""], ["1", "", "2.7"]]
    path.write_text("".join(delimiter.join(line) + "\n" for line in lines), encoding="utf-8")

    records, troubles = read(csv_rows, path)

    assert records == [{"step": "1", "loss": "2.5"}, {"step": "1", "val_loss": "2.7"}]
    assert troubles == []


def test_damaged_rows_are_left_out_and_told(tmp_path: Path) -> None:
    """A last line that does not end may lack digits of its last number."""
    path = tmp_path / "metrics.csv"
    path.write_bytes(b"step,loss\n1,2\n2\n\0\0,3\n4,5\n6,0.12")

    records, troubles = read(csv_rows, path)

    assert records == [{"step": "1", "loss": "2"}, {"step": "4", "loss": "5"}, {"step": "6"}]
    assert troubles == [
        "1 row with other than 2 columns that was left out, at row 2",
        "1 line with zero bytes that was left out",
        "1 last line that does not end, without its last value",
    ]


@pytest.mark.parametrize(
    ("end", "record", "trouble"),
    [
        ("9,2.5,nan", {"step": "9", "loss": "2.5", "norm": "nan"}, ""),
        ("9,2.5, -Inf ", {"step": "9", "loss": "2.5", "norm": " -Inf "}, ""),
        ("9,nan,", {"step": "9", "loss": "nan"}, "without its last value"),
        ("9,nan,0.2", {"step": "9", "loss": "nan"}, "without its last value"),
        ("9,nan", None, "other than 3 columns"),
        ("9", None, "other than 3 columns"),
    ],
)
def test_a_last_line_that_does_not_end(
    tmp_path: Path, end: str, record: dict[str, object] | None, trouble: str
) -> None:
    """What is whole of it counts, as it may say how the run ended."""
    records, troubles = records_of(tmp_path / "log", f"step,loss,norm\n8,2.5,1\n{end}")

    assert records[1:] == ([record] if record else [])
    assert len(troubles) == bool(trouble)
    assert trouble in "".join(troubles)


def test_comments_above_the_names(tmp_path: Path) -> None:
    """Are left out, whatever is in them."""
    text = "\ufeff# made by foo, v1\n\n# seed, 42\nstep,loss\n1,2\n"

    assert records_of(tmp_path / "log", text) == (
        [{"step": "1", "loss": "2"}],
        ["2 comments above the names of columns that were left out"],
    )


@pytest.mark.parametrize(
    ("text", "record", "notes"),
    [
        ("# step,loss\n1,2\n", {"step": "1", "loss": "2"}, 0),
        ("# by foo, v1\n#step,loss\n1,2\n", {"step": "1", "loss": "2"}, 1),
        ("#,loss\n1,2\n", {"#": "1", "loss": "2"}, 0),
    ],
)
def test_names_in_a_comment(
    tmp_path: Path, text: str, record: dict[str, object], notes: int
) -> None:
    """NumPy writes them so, right above the numbers."""
    records, troubles = records_of(tmp_path / "log", text)

    assert records == [record]
    assert len(troubles) == notes


@pytest.mark.parametrize("text", ["step,loss\n", "step,loss", "# step,loss\n", "step,loss\n\n"])
def test_names_alone(tmp_path: Path, text: str) -> None:
    """Are told to be that."""
    assert records_of(tmp_path / "log", text) == ([], ["1 header without a row"])


def test_one_column(tmp_path: Path) -> None:
    """Has no separator."""
    assert records_of(tmp_path / "log", "loss\n2.5\n2.4\n") == (
        [{"loss": "2.5"}, {"loss": "2.4"}],
        [],
    )


def test_spaces_between_a_separator_and_a_quote(tmp_path: Path) -> None:
    """Belong to neither cell."""
    assert records_of(tmp_path / "log", '"step", "loss"\n"1", "2,345.5"\n2, 2.5\n') == (
        [{"step": "1", "loss": "2345.5"}, {"step": "2", "loss": " 2.5"}],
        [],
    )


def test_quotes(tmp_path: Path) -> None:
    """May hold line breaks, separators and quotes of their own."""
    text = 'step,note,loss\r\n1,"a\r\nb, ""c""\n",2.5\r\n"2",,"2.0"\r\n'

    assert records_of(tmp_path / "log", text) == (
        [
            {"step": "1", "note": 'a\r\nb, "c"\n', "loss": "2.5"},
            {"step": "2", "loss": "2.0"},
        ],
        [],
    )


@pytest.mark.parametrize("place", [0, 2])
def test_a_quote_that_does_not_end(tmp_path: Path, place: int) -> None:
    """Is a damage of its own line, and does not swallow those below it."""
    rows = [f"{step},{2 + 1 / step:.3f}\n" for step in range(1, 60)]
    rows[5] = rows[5][:place] + '"' + rows[5][place:]

    records, _ = records_of(tmp_path / "log", "step,loss\n" + "".join(rows))

    assert [record["step"] for record in records] == [str(step) for step in range(1, 60)]


def test_columns_without_a_name_or_with_the_same(tmp_path: Path) -> None:
    """Are called by their number, so that `--map` can name them; of the same the first counts."""
    records, _ = records_of(tmp_path / "log", ",loss,loss.4,loss\n0,2.5,1,7.5\n")

    assert records == [{"column 1": "0", "loss": "2.5", "loss.4": "1", "loss.4.4": "7.5"}]


def test_numbers_as_other_countries_write_them(tmp_path: Path) -> None:
    """Where semicolons separate, a comma is the point; in quotes it separates thousands."""
    assert records_of(tmp_path / "log", "step;loss\n1;2,345\n2;-0,5\n")[0] == [
        {"step": "1", "loss": "2.345"},
        {"step": "2", "loss": "-0.5"},
    ]
    assert records_of(tmp_path / "log", 'step,loss,note\n"1,234","1,000,234.5","1,2"\n')[0] == [
        {"step": "1234", "loss": "1000234.5", "note": "1,2"}
    ]


def test_blank_lines_before_the_names(tmp_path: Path) -> None:
    """Are none."""
    assert records_of(tmp_path / "log", "\n\nstep,loss\n\n1,2\n") == (
        [{"step": "1", "loss": "2"}],
        [],
    )
