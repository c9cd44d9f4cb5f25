# SPDX-License-Identifier: Apache-2.0
"""Finding the Trainer a callback belongs to, and getting between it and its methods.

A callback is told neither the trainer nor the loss, and sees gradients only after they were
clipped. The Trainer calls its methods through the instance, so an attribute of the instance that
shadows a method sees each call, in subclasses too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, update_wrapper
from operator import attrgetter
from typing import Any

MAX_FRAMES = 12
"""The trainer is three frames above a callback's hook in all versions read; subclasses add some."""

Around = Callable[..., Any]
"""Called with the original bound method and the call's arguments; returns what the caller gets."""


def find_trainer(callback: object) -> Any | None:
    """The trainer that is calling this callback's hook now, None when it cannot be found."""
    frame = sys._getframe(1)
    for _ in range(MAX_FRAMES):
        if frame.f_back is None:
            return None
        frame = frame.f_back
        # Before Python 3.13 a frame whose locals were read keeps them alive until it returns, so
        # only those of methods are.
        if frame.f_code.co_varnames[:1] != ("self",):
            continue
        candidate = frame.f_locals.get("self")
        handler = getattr(candidate, "callback_handler", None)
        if hasattr(candidate, "training_step") and callback in getattr(handler, "callbacks", ()):
            return candidate
    return None


@dataclass(frozen=True)
class PartOf:
    """Around a method, what a part of a callback does, by the name of that.

    So a trainer that is copied or pickled takes the callback along, and not its parts, and calls
    those of the callback's copy.
    """

    callback: object
    name: str

    def __call__(self, original: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        around: Around = attrgetter(self.name)(self.callback)
        return around(original, *args, **kwargs)


class MethodWrap:
    """A method of one object, with something around it. A class, so that it can be pickled."""

    def __init__(self, original: Callable[..., Any], around: Around) -> None:
        update_wrapper(self, original)
        self.original = original
        self.around = around

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return self.around(self.original, *args, **kwargs)


def wrap_method(owner: object, name: str, around: Around) -> bool:
    """Put `around` around a method of an object; False when the object has no such method.

    Doing it again with the same `around` changes nothing, whoever wrapped the method in between.
    """
    method = getattr(owner, name, None)
    if method is None:
        return False
    inner = method
    while isinstance(inner, MethodWrap) or hasattr(inner, "__wrapped__"):
        if isinstance(inner, MethodWrap) and inner.around == around:
            return True
        inner = inner.__wrapped__
    setattr(owner, name, MethodWrap(method, around))
    return True


def wrap_for_now(owner: object, name: str, around: Around) -> Callable[[], object] | None:
    """Put `around` around a method of an object until what is returned is called; None when the
    object has no such method."""
    method = getattr(owner, name, None)
    if method is None:
        return None
    own = vars(owner)
    before = own.get(name)
    own[name] = MethodWrap(method, around)
    return partial(own.pop, name, None) if before is None else partial(own.update, {name: before})
