# SPDX-License-Identifier: Apache-2.0
"""What a report on a non-finite step holds. Host values only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from types import MappingProxyType
from typing import Final, NamedTuple

SCHEMA_VERSION: Final = 1
MOST_STEPS: Final = 50
"""Steps before the event, it included, of which a report shows the numbers."""
MOST_TENSORS: Final = 50
"""Tensors of one kind that a report names; how many there are it says always."""
MOST_INDICES: Final = 1024
"""Rows of the batch that a report names."""

_NOTHING: Final[Mapping[str, float]] = MappingProxyType({})
_NO_VERSIONS: Final[Mapping[str, str]] = MappingProxyType({})

# What a report may not know: the closed set of `Gap.what`.
INPUTS: Final = "inputs"
LABELS: Final = "labels"
PARAMETERS: Final = "parameters"
GRADIENTS: Final = "gradients"
FIRST_LAYER: Final = "first layer"
FIRST_MODULE: Final = "first module"
BATCH_INDICES: Final = "batch indices"
CHECKS: Final = (
    INPUTS, LABELS, PARAMETERS, GRADIENTS, FIRST_LAYER, FIRST_MODULE, BATCH_INDICES,
)  # fmt: skip


class TensorFinding(NamedTuple):
    """A tensor that is not finite everywhere, as far as this process holds it.

    Attributes:
        nan: how many of its elements are NaN.
        inf: how many are infinite, of either sign.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    nan: int
    inf: int


class Inspection(NamedTuple):
    """A look at all tensors of one kind.

    Attributes:
        step: the optimiser step at which it was made; later than that of the event when values
            arrive late.
        checked: tensors that were looked at.
        bad: those among them that are not finite everywhere.
        worst: of these the ones with the most such elements, at most MOST_TENSORS.
        before_update: whether the optimiser had not yet used the gradients of `step`.
    """

    step: int
    checked: int
    bad: int
    worst: tuple[TensorFinding, ...] = ()
    before_update: bool = False


class Labels(NamedTuple):
    """What the labels of one micro-batch are.

    Attributes:
        elements: how many there are.
        ignored: how many of them are -100, which torch's losses leave out.
        least: the smallest of the others, None without any.
        most: the largest of the others.
        classes: number of classes the model knows, None when unknown.
    """

    name: str
    elements: int
    ignored: int
    least: int | None = None
    most: int | None = None
    classes: int | None = None


class ModuleFinding(NamedTuple):
    """The first module of a forward pass whose output was not finite.

    Attributes:
        step: the optimiser step in which it was seen.
        name: its path in the model, "" for the model itself.
        kind: its class.
        shape, dtype, nan, inf: of that output; nan and inf count elements.
        inputs_finite: whether all that went into it was finite, so that the module made it.
    """

    step: int
    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    nan: int
    inf: int
    inputs_finite: bool


class StepRow(NamedTuple):
    """The numbers of one step; None where one is unknown.

    Attributes:
        learning_rate: that of the parameter group with the largest.
        skipped: whether the optimiser left the weights alone.
    """

    step: int
    loss: float | None = None
    grad_norm: float | None = None
    learning_rate: float | None = None
    loss_scale: float | None = None
    skipped: bool | None = None

    @property
    def non_finite(self) -> bool:
        """Whether loss or gradient norm is NaN or infinite."""
        return broken(self.loss) or broken(self.grad_norm)

    @property
    def broke_weights(self) -> bool:
        """Whether a non-finite gradient of this step went into the weights.

        A gradient scaler leaves out such a step, also where nobody says so.
        """
        scaled = self.skipped is None and self.loss_scale is not None
        return self.non_finite and not (self.skipped or scaled)


class Gap(NamedTuple):
    """What a report does not know, one of CHECKS, and why, in a sentence."""

    what: str
    why: str


class Findings(NamedTuple):
    """What an inspection of the device found. None, or no labels: not looked at, see `gaps`."""

    inputs: Inspection | None = None
    labels: tuple[Labels, ...] = ()
    parameters: Inspection | None = None
    gradients: Inspection | None = None
    batch_indices: tuple[int, ...] | None = None
    gaps: tuple[Gap, ...] = ()


class About(NamedTuple):
    """Which run it was.

    Attributes:
        versions: of Python, the exporter and the libraries in use, by name.
    """

    run: str
    rank: int
    framework: str | None = None
    model: str | None = None
    versions: Mapping[str, str] = _NO_VERSIONS


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that is known of a step whose loss or gradient norm was not finite.

    Attributes:
        source: one of catalog.NON_FINITE_SOURCES.
        step, epoch, timestamp, loss, grad_norm, learning_rates, loss_scale, skipped: as in
            StepSignals.
        steps: the last steps, oldest first, the last one being that of the event.
        first_layer: the first layer with a non-finite gradient, by the pass over layers.
        gaps: what could not be known.
    """

    about: About
    source: str
    step: int
    timestamp: float
    epoch: float | None = None
    loss: float | None = None
    grad_norm: float | None = None
    learning_rates: Mapping[str, float] = field(default_factory=lambda: _NOTHING)
    loss_scale: float | None = None
    skipped: bool | None = None
    steps: tuple[StepRow, ...] = ()
    inputs: Inspection | None = None
    labels: tuple[Labels, ...] = ()
    parameters: Inspection | None = None
    gradients: Inspection | None = None
    first_layer: str | None = None
    first_module: ModuleFinding | None = None
    batch_indices: tuple[int, ...] | None = None
    gaps: tuple[Gap, ...] = ()

    @property
    def before(self) -> tuple[StepRow, ...]:
        """The steps before the event."""
        return self.steps[:-1]


def broken(value: float | None) -> bool:
    """Whether a number is known and not finite."""
    return value is not None and not isfinite(value)


def shown(value: float | None) -> str:
    """A number for a person; nothing for one that is unknown."""
    return "" if value is None else "NaN" if value != value else f"{value:.6g}"


def worst_of(findings: Iterable[TensorFinding]) -> tuple[TensorFinding, ...]:
    """The MOST_TENSORS findings with the most non-finite elements, the first ones first among
    equals."""
    return tuple(sorted(findings, key=lambda found: -(found.nan + found.inf))[:MOST_TENSORS])
