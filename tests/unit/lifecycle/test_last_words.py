# SPDX-License-Identifier: Apache-2.0
"""The end of a run, and who has seen it."""

from __future__ import annotations

import sys

import pytest

from training_exporter import catalog
from training_exporter.detectors import robust_detectors
from training_exporter.lifecycle.last_words import (
    DELIVERY_SECONDS,
    MAX_SCRAPERS,
    Scrapers,
    conclude_at_exit,
    last_error,
    linger,
)
from training_exporter.monitor import TrainingMonitor
from training_exporter.signals import StepSignals
from training_exporter.status import RunStatus, StatusBoard


class World:
    """A clock, and a run that may be over."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.over = False
        self.scrapers = Scrapers(lambda: self.over, lambda: self.now)

    def scrape(self, *, after: float, by: str = "10.0.0.1") -> None:
        self.now += after
        self.scrapers.note(by)

    def linger(self, at_most: float = 30.0, scrape_every: float | None = None) -> float:
        """Seconds waited, while somebody goes on scraping or nobody does."""
        began = last = self.now

        def pause(seconds: float) -> None:
            nonlocal last
            self.now += seconds
            if scrape_every is not None and self.now - last >= scrape_every:
                last = self.now
                self.scrapers.note("10.0.0.1")

        linger(lambda: self.scrapers.due(at_most), at_most, clock=lambda: self.now, pause=pause)
        return self.now - began


@pytest.fixture
def world() -> World:
    return World()


def test_nobody_is_waited_for_when_nobody_scrapes(world: World) -> None:
    """Most runs on a laptop."""
    world.over = True

    assert world.linger() == 0.0


def test_it_waits_for_the_next_scrape_and_no_longer(world: World) -> None:
    """A little more, in which the answer is sent."""
    world.scrape(after=0.0)
    world.scrape(after=5.0)
    world.over = True

    assert world.linger(scrape_every=5.0) == pytest.approx(5.0 + DELIVERY_SECONDS, abs=0.15)


def test_a_scraper_that_does_not_come_back_is_waited_for_two_intervals(world: World) -> None:
    """Prometheus may have been stopped."""
    world.scrape(after=0.0)
    world.scrape(after=5.0)
    world.over = True

    assert world.linger() == pytest.approx(10.0, abs=0.1)


def test_one_that_has_long_not_come_is_not_waited_for(world: World) -> None:
    """It stopped scraping in the middle of the run."""
    world.scrape(after=0.0)
    world.scrape(after=5.0)
    world.over, world.now = True, world.now + 11.0

    assert world.linger() == 0.0


@pytest.mark.parametrize("at_most", [0.0, 3.0])
def test_the_bound_holds(world: World, at_most: float) -> None:
    """Whatever the interval; 0 turns it off."""
    world.scrape(after=0.0)
    world.scrape(after=60.0)
    world.over = True

    assert world.linger(at_most) == pytest.approx(at_most, abs=0.1)


def test_one_that_came_once_is_waited_for_up_to_the_bound(world: World) -> None:
    """How often it comes is not known yet: a run shorter than two scrapes."""
    world.scrape(after=0.0)
    world.over = True

    assert world.linger(8.0) == pytest.approx(8.0, abs=0.1)


def test_each_scraper_has_to_see_the_end(world: World) -> None:
    """Prometheus is often run twice."""
    for by in ("10.0.0.1", "10.0.0.2"):
        world.scrape(after=0.0, by=by)
    world.scrape(after=5.0, by="10.0.0.1")
    world.scrape(after=0.0, by="10.0.0.2")
    world.over = True
    world.scrape(after=1.0, by="10.0.0.1")

    assert world.linger() == pytest.approx(9.0, abs=0.1)


def test_two_that_come_by_one_name_are_both_waited_for(world: World) -> None:
    """A pair of one version behind one address: the gap between the two says little."""
    for after in (0.0, 1.0, 4.0, 1.0):
        world.scrape(after=after)
    world.over, world.now = True, world.now + 0.5

    assert world.linger() == pytest.approx(7.5, abs=0.1)


def test_no_wait_once_the_end_was_seen(world: World) -> None:
    """A script that works on for a minute after its training."""
    world.scrape(after=0.0)
    world.over = True
    world.scrape(after=5.0)
    world.now += 1.0

    assert world.linger() == 0.0


def test_the_number_of_scrapers_is_bounded(world: World) -> None:
    """Anyone may send the header."""
    for number in range(MAX_SCRAPERS + 50):
        world.scrape(after=0.1, by=str(number))

    assert len(world.scrapers._known) == MAX_SCRAPERS


@pytest.mark.parametrize(
    ("step", "planned", "error", "state"),
    [
        (10, 10, None, catalog.COMPLETED),
        (10, None, None, catalog.STOPPED),
        (None, None, None, catalog.STOPPED),
        (4, 10, None, catalog.STOPPED),
        (4, 10, KeyboardInterrupt(), catalog.STOPPED),
        (4, 10, SystemExit(), catalog.STOPPED),
        (4, 10, ValueError(), catalog.CRASHED),
        (10, 10, ValueError(), catalog.CRASHED),
    ],
)
def test_a_process_ends_and_nobody_has_concluded_the_run(
    step: int | None, planned: int | None, error: BaseException | None, state: str
) -> None:
    """A loop without a with-block: what is known then is the error, and how far the run was."""
    board = StatusBoard(RunStatus("run", 0, catalog.RUNNING))
    monitor = TrainingMonitor(robust_detectors())
    if step is not None:
        monitor.observe(StepSignals(step, 0.0, 1.0, max_steps=planned))

    conclude_at_exit(board, monitor, error)

    assert board.status.state == state
    assert board.status.failure == ("ValueError" if state == catalog.CRASHED else None)


def test_an_error_of_an_earlier_input_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interactive session remembers the last one, whatever it was about."""
    monkeypatch.setattr(sys, "last_value", ValueError(), raising=False)
    assert isinstance(last_error(), ValueError)

    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    assert last_error() is None


def test_a_run_that_is_concluded_stays_as_it_is() -> None:
    """The process may die of something else later."""
    board = StatusBoard(RunStatus("run", 0, catalog.COMPLETED))

    conclude_at_exit(board, TrainingMonitor([]), ValueError())

    assert board.status.state == catalog.COMPLETED
