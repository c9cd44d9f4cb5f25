# SPDX-License-Identifier: Apache-2.0
"""Pages are drawn one at a time, shared, and not without a rest."""

from __future__ import annotations

import threading

import pytest

from training_exporter.web import pacing
from training_exporter.web.pacing import Paced


def test_one_after_the_other_are_all_fresh() -> None:
    """A request that comes after a drawing has begun gets a drawing of its own."""
    results = iter(range(10))
    paced = Paced[int](rest=0)
    assert [paced.get("page", lambda: next(results)) for _ in range(3)] == [0, 1, 2]


def test_who_waits_shares() -> None:
    """Those who came while a page was drawn share the next drawing, by what they asked for."""
    paced = Paced[str](rest=0)
    entered, release = threading.Event(), threading.Event()
    drawn: list[str] = []

    def make(key: str) -> str:
        drawn.append(key)
        entered.set()
        assert release.wait(5)
        return f"{key} {len(drawn)}"

    got: list[str] = []
    threads = [
        threading.Thread(target=lambda: got.append(paced.get("a", lambda: make("a"))))
        for _ in range(5)
    ]
    threads[0].start()
    assert entered.wait(5)
    for thread in threads[1:]:
        thread.start()
    while threading.active_count() < 6:  # pragma: no cover - until all of them wait
        pass
    threading.Event().wait(0.05)
    release.set()
    for thread in threads:
        thread.join()
    assert drawn == ["a", "a"]
    assert sorted(got) == ["a 1", "a 2", "a 2", "a 2", "a 2"]
    assert paced.get("b", lambda: make("b")) == "b 3"


def test_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few drawings are free; a flood of them takes a quarter of a core, and no rest is long."""
    slept: list[float] = []
    now = [100.0]

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    def draw(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(pacing, "sleep", sleep)
    monkeypatch.setattr(pacing, "monotonic", lambda: now[0])
    monkeypatch.setattr(pacing, "thread_time", lambda: now[0])
    paced = Paced[None]()
    for _ in range(20):
        paced.get("page", lambda: draw(0.01))
    assert slept == []
    for _ in range(200):
        paced.get("page", lambda: draw(0.01))
    assert slept[-1] == pytest.approx(0.03)
    paced.get("page", lambda: draw(5.0))
    paced.get("page", lambda: draw(0.0))
    assert slept[-1] == pacing.LONGEST_REST


def test_a_failure_is_not_kept() -> None:
    """A drawing that failed is the business of the one who asked."""
    paced = Paced[int](rest=0)
    with pytest.raises(ZeroDivisionError):
        paced.get("page", lambda: 1 // 0)
    assert paced.get("page", lambda: 1) == 1


def test_a_drawing_that_hangs_does_not_hang_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others give up, so that their threads can answer something else."""
    monkeypatch.setattr(pacing, "PATIENCE_SECONDS", 0.01)
    paced = Paced[int]()

    def inner() -> int:
        with pytest.raises(TimeoutError, match="still not answered"):
            paced.get("page", lambda: 2)
        return 1

    assert paced.get("page", inner) == 1
