# SPDX-License-Identifier: Apache-2.0
"""Logs that are cut off, damaged or no logs at all: never a traceback."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from rich.text import Text

from tests.unit.replay.logs import rows, write_csv, write_json_lines, write_trainer_state
from tests.unit.replay.test_playing import write_events
from tests.unit.replay.test_wandb_runs import write_wandb
from training_exporter.replay.playing import Plan, Playback
from training_exporter.replay.report import for_person, for_program
from training_exporter.replay.trouble import ReplayError

WRITERS = {
    "CSV": write_csv,
    "JSON lines": write_json_lines,
    "Hugging Face trainer state": write_trainer_state,
    "TensorBoard events": write_events,
    "W&B run": write_wandb,
}


def outcome(path: Path, content: bytes) -> int:
    """Rows that are judged; none where one line says why. Anything else is raised."""
    path.write_bytes(content)
    rows_judged = 0
    try:
        playback = Playback(path, Plan())
        playback.play()
    except ReplayError as error:
        told = str(error)
    else:
        told = "".join(str(part) for part in for_person(playback) if isinstance(part, Text))
        rows_judged = playback.course.rows
        told += json.dumps(for_program(playback), allow_nan=False)
    assert "\n" not in told
    assert told.encode()
    return rows_judged


@pytest.mark.parametrize("name", WRITERS)
def test_a_log_that_is_cut_off_anywhere(tmp_path: Path, name: str) -> None:
    """Has the rows that are whole, and no others."""
    few = [{"step": row["step"], "loss": round(row["loss"], 3)} for row in rows()[:2]]
    whole = WRITERS[name](tmp_path / "whole", few).read_bytes()

    judged = [outcome(tmp_path / "cut", whole[:end]) for end in range(len(whole) + 1)]

    assert judged == sorted(judged)
    assert set(judged) == {0, 1, 2}


def flips(whole: bytes, random: Random) -> Iterator[bytes]:
    """The log with some of its bytes changed, or some bytes put in or taken out."""
    for _ in range(20):
        damaged = bytearray(whole)
        for _ in range(random.randint(1, 8)):
            place = random.randrange(len(damaged))
            kind = random.random()
            if kind < 0.6:
                damaged[place] = random.choice([*b'",;{}[]\n\r\0\xff', random.randrange(256)])
            elif kind < 0.8:
                damaged[place:place] = random.randbytes(random.randint(1, 30))
            else:
                del damaged[place : place + random.randint(1, 30)]
        yield bytes(damaged)


@pytest.mark.parametrize("name", WRITERS)
def test_a_log_with_random_damage(tmp_path: Path, name: str) -> None:
    """Is replayed as far as it can be read."""
    whole = WRITERS[name](tmp_path / "whole", rows()[:5]).read_bytes()

    judged = [outcome(tmp_path / "damaged", each) for each in flips(whole, Random(name))]

    assert max(judged) > 0


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(Random(1).randbytes(70_000), id="noise"),
        pytest.param(bytes(100), id="zeros"),
        pytest.param(b"\n" * 100, id="blank lines"),
        pytest.param(b"{" * 60_000, id="braces"),
        pytest.param(b'{"a":' * 20_000 + b"1" + b"}" * 20_000 + b"\n{}", id="deep nesting"),
        pytest.param(b'{"log_history": ' + b"[" * 60_000, id="deep history"),
        pytest.param(b"step,loss\n" + b"9" * 200_000 + b",1\n", id="a huge number"),
        pytest.param(b'step,loss\n"' + b"x" * 200_000 + b'",1\n', id="a huge cell"),
        pytest.param(b",,,\n1,2,3,4\n", id="no names"),
        pytest.param(b'{"step": 1, "\\ud800\\n' + b"x" * 200 + b'": 2}\n', id="half a surrogate"),
        pytest.param(b"step,loss\n1,2\n".decode().encode("utf-16"), id="UTF-16"),
        pytest.param(b":W&B" + bytes(40_000), id="an empty W&B run"),
        pytest.param(gzip.compress(Random(1).randbytes(70_000)), id="an archive of noise"),
        pytest.param(gzip.compress(b""), id="an empty archive"),
        pytest.param(gzip.compress(b"step,loss\n1,2\n")[:8], id="the head of an archive"),
    ],
)
def test_no_log(tmp_path: Path, content: bytes) -> None:
    """Is one line that says so."""
    assert outcome(tmp_path / "log", content) == 0


@pytest.mark.parametrize(
    "number",
    ["1e400", "-1e400", "NaN", "1" * 400, '"' + "1" * 5000 + '"', "true", "[]", "{}", '""'],
)
@pytest.mark.parametrize("name", ["step", "loss", "grad_norm", "timestamp", "epoch", "eval_loss"])
def test_values_out_of_this_world(tmp_path: Path, name: str, number: str) -> None:
    """Cost no more than their own row."""
    lines = [json.dumps(row) for row in rows()[:2]]
    lines.insert(1, f'{{"step": 2, "loss": 1.5, "{name}": {number}}}')

    assert outcome(tmp_path / "log", "\n".join(lines).encode()) >= 2


def test_utf_16_is_told(tmp_path: Path) -> None:
    """As what it is, with what helps."""
    path = tmp_path / "log"
    path.write_bytes("step,loss\n1,2\n".encode("utf-16"))

    with pytest.raises(ReplayError, match="is UTF-16; expected UTF-8"):
        Playback(path, Plan())
