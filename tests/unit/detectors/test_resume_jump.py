# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Iterable

import pytest

from tests.unit.detectors.feed import INF, NAN, feed, findings, noisy
from training_exporter.detectors import (
    HEALTHY,
    WARMING_UP,
    Detector,
    Finding,
    RobustResumeJump,
    TextbookResumeJump,
)

BOTH = pytest.mark.parametrize("cls", [RobustResumeJump, TextbookResumeJump])


def resumed(cls: type[Detector], before: Iterable[float]) -> Detector:
    """A detector that has taken over what another one learnt before a checkpoint."""
    old, new = cls(), cls()
    feed(old, "loss", before)
    new.load_state_dict(old.state_dict())
    return new


@BOTH
def test_a_jump_is_found_once_and_at_the_eighth_loss(cls: type[Detector]) -> None:
    """By then it is no single wild batch; what comes after is a new level, not a new jump."""
    verdicts = feed(resumed(cls, noisy(2.0, 100)), "loss", noisy(5.0, 50, seed=1))

    assert findings(verdicts) == [7]
    assert isinstance(verdicts[7], Finding)
    assert verdicts[7].value == pytest.approx(5.0, abs=0.1)
    assert 2.0 < verdicts[7].threshold < 5.0


@BOTH
def test_a_run_that_goes_on_as_before_is_healthy(cls: type[Detector]) -> None:
    """With one wild batch, too."""
    after = noisy(2.0, 50, seed=1)
    after[3] = 50.0 if cls is RobustResumeJump else 9.0

    assert set(feed(resumed(cls, noisy(2.0, 100)), "loss", after)) == {HEALTHY}


@BOTH
def test_without_a_resume_there_is_nothing_to_judge(cls: type[Detector]) -> None:
    """A jump in mid-run is for others to find, and so is one after a start from nothing."""
    assert not findings(feed(cls(), "loss", [*noisy(2.0, 100), *noisy(9.0, 100)]))
    fresh = cls()
    fresh.load_state_dict({})
    assert feed(fresh, "loss", [9.0])[0] is WARMING_UP
    assert not findings(feed(fresh, "loss", noisy(9.0, 50)))


@BOTH
def test_losses_that_are_unknown_or_not_finite_are_not_waited_by(cls: type[Detector]) -> None:
    """The first eight finite ones count."""
    after = [None, NAN, INF, *noisy(9.0, 20)]

    assert findings(feed(resumed(cls, noisy(2.0, 100)), "loss", after)) == [10]


@BOTH
def test_a_second_resume_meanwhile_is_judged_against_the_level_before_the_first(
    cls: type[Detector],
) -> None:
    """A crash after four steps, with a checkpoint on each, hides no jump."""
    first = resumed(cls, noisy(2.0, 100))
    feed(first, "loss", noisy(9.0, 4))
    second = cls()
    second.load_state_dict(first.state_dict())

    assert findings(feed(second, "loss", noisy(9.0, 20))) == [7]


def test_a_noisy_run_needs_a_higher_jump() -> None:
    """In units of what was seen before; and a run that hardly moves needs a twentieth."""
    for noise, after, found in (
        (0.02, 2.3, True),
        (0.2, 3.2, False),
        (0.2, 3.5, True),
        (1e-6, 2.05, False),
        (1e-6, 2.2, True),
    ):
        detector = resumed(RobustResumeJump, noisy(2.0, 100, noise))
        assert bool(findings(feed(detector, "loss", [after] * 20))) is found


def test_losses_of_either_sign() -> None:
    """The robust rule needs no ratio; the textbook's says nothing there."""
    for cls, found in ((RobustResumeJump, [7]), (TextbookResumeJump, [])):
        detector = resumed(cls, noisy(-0.5, 100))
        assert findings(feed(detector, "loss", noisy(0.5, 20, seed=1))) == found


def test_too_few_losses_before_are_no_level() -> None:
    """Sixteen are enough for the robust rule."""
    assert not findings(feed(resumed(RobustResumeJump, noisy(2.0, 15)), "loss", noisy(9.0, 30)))
    assert findings(feed(resumed(RobustResumeJump, noisy(2.0, 16)), "loss", noisy(9.0, 30))) == [7]


def test_gamma_is_the_ratio_of_the_textbook() -> None:
    """Of the mean of the first eight to the average before them."""
    old = TextbookResumeJump(gamma=1.5)
    feed(old, "loss", [2.0] * 50)
    for after, found in ((2.9, []), (3.1, [7])):
        detector = TextbookResumeJump(gamma=1.5)
        detector.load_state_dict(old.state_dict())
        assert findings(feed(detector, "loss", [after] * 10)) == found
