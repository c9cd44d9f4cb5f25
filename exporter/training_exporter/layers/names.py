# SPDX-License-Identifier: Apache-2.0
"""Short, stable names for the layers of a model, from the names of its parameters.

    model.layers.15.self_attn.q_proj.weight  ->  L15, L15.attn.q or L15.attn.q.weight

Numbers are padded with zeros, so that layers sort as they follow each other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from training_exporter.catalog import OTHER
from training_exporter.config import LAYER_GROUPINGS

AUTO, BLOCK, MODULE, PARAMETER = LAYER_GROUPINGS

# What torch.compile, FSDP, activation checkpointing and PEFT put into names.
_WRAPPERS = frozenset(
    {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "base_layer", "default"}
)
_LEADING_WRAPPERS = (("module",), ("base_model", "model"))  # DDP, then PEFT within it
_LEAVES = frozenset({"weight", "bias", "weight_g", "weight_v"})
_PARAMETRIZED = "parametrizations"  # torch.nn.utils.parametrize puts it behind the module
_JOINED_LEAVES = ("_proj_weight", "_proj_bias")  # a map within a module, as in MultiheadAttention
_CONTAINERS = frozenset({"layers", "layer", "blocks", "block", "stages", "h", "resblocks"})
_WHOLE = "model"
_SHORT: Final[Mapping[str, str]] = {
    "self_attn": "attn",
    "self_attention": "attn",
    "attention": "attn",
    "SelfAttention": "attn",
    "c_proj": "c_proj",  # "c" says nothing
}
_LEFT_OUT = frozenset({"self"})  # BERT's attention.self.query

_Path = tuple[str, ...]


class LayerNames(NamedTuple):
    """Which layer each parameter belongs to.

    Attributes:
        layers: the names of the layers, in the model's order; the last may be catalog.OTHER.
        of_parameter: for each parameter, in the order they were given, the place of its layer.
        folded: how many layers have no name of their own and are together in catalog.OTHER.
    """

    layers: tuple[str, ...]
    of_parameter: tuple[int, ...]
    folded: int


def name_layers(parameters: Iterable[str], *, grouping: str = AUTO, most: int = 64) -> LayerNames:
    """Put the parameters of a model together to layers.

    Args:
        parameters: names as `named_parameters()` gives them.
        grouping: one of config.LAYER_GROUPINGS. "block" is one layer of the stack, "module" one
            linear map in it, "parameter" keeps weight and bias apart; "auto" is "module" where that
            gives no more than `most` layers, else "block".
        most: how many layers to name; the model's last ones beyond it are together in "other".

    Raises:
        ValueError: an unknown grouping, or `most` below 1.
    """
    if grouping not in LAYER_GROUPINGS:
        raise ValueError(f"a grouping is one of {', '.join(LAYER_GROUPINGS)}, not {grouping!r}")
    if most < 1:
        raise ValueError(f"at least one layer must have a name, got {most!r}")
    names = _grouped(_bare(list(parameters)), grouping, most)
    kept = list(dict.fromkeys(names))
    folded = max(0, len(kept) - most)
    if folded:
        kept = [*kept[: most - 1], OTHER]
        folded += 1  # the one whose place "other" takes
    place = {name: index for index, name in enumerate(kept)}
    return LayerNames(tuple(kept), tuple(place.get(name, len(kept) - 1) for name in names), folded)


def _grouped(paths: Sequence[_Path], grouping: str, most: int) -> list[str]:
    if grouping == AUTO:
        names = _grouped(paths, MODULE, most)
        return names if len(set(names)) <= most else _grouped(paths, BLOCK, most)
    model = _Model(paths)
    names = [model.name(path, grouping) for path in paths]
    names = _told_apart(names, [model.full_name(path, grouping) for path in paths])
    return [f"{_WHOLE}.{name}" if name == OTHER else name for name in names]


def _told_apart(names: Sequence[str], full_names: Sequence[str]) -> list[str]:
    """The short names, and the full ones where two layers would become one by a short name."""
    meant: dict[str, set[str]] = {}
    for name, full in zip(names, full_names, strict=True):
        meant.setdefault(name, set()).add(full)
    return [
        name if len(meant[name]) == 1 else full
        for name, full in zip(names, full_names, strict=True)
    ]


def _bare(names: Sequence[str]) -> list[_Path]:
    """The components of each parameter's name, without what wrappers put into it."""
    full = [tuple(name.split(".")) for name in names]
    paths = [tuple(part for part in path if part not in _WRAPPERS) or path for path in full]
    for wrapper in _LEADING_WRAPPERS:
        if all(path[: len(wrapper)] == wrapper != path for path in paths):
            paths = [path[len(wrapper) :] for path in paths]
    return paths if len(set(paths)) == len(set(full)) else full


class _Model:
    """What the names of a model's parameters have in common: its numbered stacks of layers, one in
    most models, two in an encoder with a decoder, and how long its numbers are."""

    def __init__(self, paths: Sequence[_Path]) -> None:
        self._stacks = _stacks(paths)
        self._root = _common([stack[:-1] for stack in self._stacks])
        self._titles = _titles(self._stacks)
        places = [(path, self._number(path)) for path in paths]
        self._width = max([len(path[at]) for path, at in places if at is not None], default=1)
        self._widths = _widths(paths)

    def name(self, path: _Path, grouping: str) -> str:
        """The short name of a parameter's layer."""
        at = self._number(path)
        if at is None:
            skipped = len(_common([path[:-1], self._root]))
            rest = self._outside(path) if grouping == BLOCK else self._padded(path)
            return ".".join(_shortened(rest[skipped:], grouping)) or _WHOLE
        block = (*self._titles[path[:at]], f"L{path[at].zfill(self._width)}")
        if grouping == BLOCK:
            return ".".join(block)
        return ".".join((*block, *_shortened(self._padded(path)[at + 1 :], grouping)))

    def full_name(self, path: _Path, grouping: str) -> str:
        """The name that no other layer has, and all parameters of this one."""
        if grouping == BLOCK:
            at = self._number(path)
            return ".".join(self._outside(path) if at is None else path[: at + 1])
        return ".".join(_module(path) if grouping == MODULE else path)

    def _outside(self, path: _Path) -> _Path:
        """What is in no stack, as far as it is beside one: the embeddings, the head."""
        shared = max([len(_common([path[:-1], stack])) for stack in self._stacks], default=0)
        return _module(path)[: shared + 1]

    def _number(self, path: _Path) -> int | None:
        at = _first_number(path)
        return at if at is not None and path[:at] in self._stacks else None

    def _padded(self, path: _Path) -> _Path:
        return path[:1] + tuple(
            part.zfill(self._widths[before]) if part.isdecimal() else part
            for before, part in pairwise(path)
        )


def _shortened(path: _Path, grouping: str) -> _Path:
    if grouping == MODULE:
        path = _module(path)
    return tuple(
        _SHORT.get(part, part.removesuffix("_proj")) for part in path if part not in _LEFT_OUT
    )


def _module(path: _Path) -> _Path:
    """The module that a parameter belongs to."""
    if _PARAMETRIZED in path:
        return path[: path.index(_PARAMETRIZED)]
    if path[-1:] and path[-1] in _LEAVES:
        return path[:-1]
    if path[-1:] and path[-1].endswith(_JOINED_LEAVES):
        return (*path[:-1], path[-1].rpartition("_")[0])
    return path


def _first_number(path: _Path) -> int | None:
    return next((at for at, part in enumerate(path) if part.isdecimal()), None)


def _stacks(paths: Sequence[_Path]) -> list[_Path]:
    """What has numbered parts. A lone number counts only where layers use to be: in classifier.1 it
    is just the place after the dropout."""
    numbers: dict[_Path, set[str]] = {}
    for path in paths:
        at = _first_number(path)
        if at is not None:
            numbers.setdefault(path[:at], set()).add(path[at])
    return [
        stack
        for stack, found in numbers.items()
        if len(found) > 1 or not stack or stack[-1] in _CONTAINERS
    ]


def _widths(paths: Sequence[_Path]) -> dict[str, int]:
    """How many digits the numbers have that follow a component, such as those of experts."""
    widths: dict[str, int] = {}
    for path in paths:
        for before, part in pairwise(path):
            if part.isdecimal():
                widths[before] = max(widths.get(before, 1), len(part))
    return widths


def _common(paths: Sequence[_Path]) -> _Path:
    """The components that all paths begin with."""
    shared: list[str] = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return tuple(shared)


def _titles(stacks: Sequence[_Path]) -> dict[_Path, _Path]:
    """For each stack the part of its path that tells it from the others; nothing for the only
    one."""
    start = len(_common(stacks))
    end = len(_common([stack[start:][::-1] for stack in stacks]))
    cut = {stack: stack[start : len(stack) - end] for stack in stacks}
    bare = {
        stack: title[:-1] if title[-1:] and title[-1] in _CONTAINERS else title
        for stack, title in cut.items()
    }
    for titles in (bare, cut):
        if all(count == 1 for count in Counter(titles.values()).values()):
            return titles
    return {stack: stack for stack in stacks}
