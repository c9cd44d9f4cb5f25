# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Callable
from threading import Lock
from typing import Any

import pytest

from training_exporter.integrations.trainer_wraps import (
    MethodWrap,
    PartOf,
    find_trainer,
    wrap_method,
)


class Owner:
    def greet(self, name: str) -> str:
        """Says hello."""
        return f"hello {name}"


class Shouting:
    """Calls the original and makes it loud."""

    def around(self, original: Callable[..., Any], /, *args: Any, **kwargs: Any) -> str:
        return f"{original(*args, **kwargs)}!"


@pytest.fixture
def shouting() -> Shouting:
    return Shouting()


def test_a_wrap_is_seen_by_one_object_only(shouting: Shouting) -> None:
    """The class and its other objects are as they were, and the wrap tells what it wraps."""
    owner, other = Owner(), Owner()

    assert wrap_method(owner, "greet", shouting.around)

    assert owner.greet(name="you") == "hello you!"
    assert other.greet("you") == "hello you"
    assert owner.greet.__doc__ == "Says hello."


def test_wrapping_again_changes_nothing(shouting: Shouting) -> None:
    """Nor does it when somebody else's well-behaved wrapper lies on top."""
    owner = Owner()
    wrap_method(owner, "greet", shouting.around)
    first: Any = owner.greet
    wrap_method(owner, "greet", shouting.around)

    assert owner.greet is first

    @functools.wraps(first)
    def politely(*args: Any, **kwargs: Any) -> str:
        return f"{first(*args, **kwargs)} Please."

    owner.greet = politely  # type: ignore[method-assign]
    wrap_method(owner, "greet", shouting.around)

    assert owner.greet("you") == "hello you! Please."


def test_several_wraps_lie_around_each_other(shouting: Shouting) -> None:
    """Two callbacks in one trainer are both told."""
    owner = Owner()
    wrap_method(owner, "greet", shouting.around)
    wrap_method(owner, "greet", Shouting().around)

    assert owner.greet("you") == "hello you!!"


def test_a_method_that_is_not_there_is_no_error(shouting: Shouting) -> None:
    """Releases differ in their private methods."""
    assert not wrap_method(Owner(), "_get_grad_norm", shouting.around)
    assert not wrap_method(None, "clip_grad_norm_", shouting.around)


def test_a_wrapped_object_can_be_pickled(shouting: Shouting) -> None:
    """Some launchers send the whole trainer to another process."""
    owner = Owner()
    wrap_method(owner, "greet", shouting.around)

    duplicate = pickle.loads(pickle.dumps(owner))

    assert duplicate.greet("you") == "hello you!"
    assert isinstance(duplicate.greet, MethodWrap)
    assert duplicate.greet.original.__self__ is duplicate


class Whole:
    """A callback with a part that holds what cannot be copied."""

    def __init__(self) -> None:
        self.part, self.lock = Shouting(), Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]


def test_a_part_is_found_in_the_copy_of_its_callback() -> None:
    """So it need not be copied; and two of one name are one wrap."""
    owner: Any = Owner()
    owner.callback = Whole()
    owner.callback.part.lock = Lock()
    for _ in range(2):
        wrap_method(owner, "greet", PartOf(owner.callback, "part.around"))

    duplicate = copy.deepcopy(owner)

    assert owner.greet("you") == duplicate.greet("you") == "hello you!"
    assert duplicate.greet.around.callback is duplicate.callback


def test_nobody_is_calling() -> None:
    """Without a trainer above there is None, whatever calls itself `self`."""
    assert find_trainer(object()) is None
